"""Options that several commands have."""

from enum import StrEnum


class Causal(StrEnum):
    """How a causal mask lines up query and key positions."""

    NONE = "none"
    TOP_LEFT = "top_left"
    BOTTOM_RIGHT = "bottom_right"
