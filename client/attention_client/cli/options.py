"""Options that several commands take."""

from enum import StrEnum


class Causal(StrEnum):
    """The alignment of query and key positions under a causal mask."""

    NONE = "none"
    TOP_LEFT = "top_left"
    BOTTOM_RIGHT = "bottom_right"
