"""The options of texts."""

from typing import Literal, get_args

Truncate = Literal["none", "right", "left"]
TRUNCATES: tuple[Truncate, ...] = get_args(Truncate)
