"""Options that several commands take."""

from enum import StrEnum


class Causal(StrEnum):
    """The alignment of query and key positions under a causal mask."""

    NONE = "none"
    TOP_LEFT = "top_left"
    BOTTOM_RIGHT = "bottom_right"


class Truncate(StrEnum):
    """The end at which tokens of a text that is too long are dropped."""

    NONE = "none"
    RIGHT = "right"
    LEFT = "left"


class Fold(StrEnum):
    """The reduction of the weights of several layers to one."""

    MEAN = "mean"
    MAX = "max"
    ROLLOUT = "rollout"
