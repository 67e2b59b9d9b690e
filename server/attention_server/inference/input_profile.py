"""The profile of an input: its predicted cost, its size and its kind, as its shapes decide them."""

from collections.abc import Hashable
from typing import NamedTuple


class InputProfile(NamedTuple):
    """Facts that follow from the shapes of a sequence and from the plan.

    Attributes:
        queries, keys: T and S.
        work: bytes of the scores of all layers.
        held: bytes of the prepared sequence.
        answered: bytes of its outputs.
        kind: equal for sequences that may run as one batch of the same plan; None for one that runs alone.
        most: the largest batch of this kind.
        alone: predicted seconds of the sequence by itself, before correction.
        spared: the factor of that cost for each sequence of a batch.
    """

    queries: int
    keys: int
    work: int
    held: int
    answered: int
    kind: Hashable | None
    most: int
    alone: float
    spared: float
