"""What a sequence costs, in seconds of one slot: measured when a model is loaded, corrected by what runs take."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

S = TypeVar("S")

LENGTHS = (8, 32, 128)  # at which a model is measured
TINY = (1, 2, 4, 8, 16)  # at which it is measured whether it pays to run several sequences together
ROWS = 128  # of a run of several sequences: more gains nothing
MOST = 32  # sequences in one run
PAYS = 0.85  # of what they take one by one
PATIENCE = 0.1  # seconds: of what takes longer one measurement does, and nothing longer is measured
BUDGET = 0.5  # seconds for these lengths: a large model starts sooner than it merges
REPETITIONS = 4
WEIGHT = 0.1  # of the latest run in the average that corrects
FURTHEST = 16.0  # a correction, or its inverse: beyond it was some other thing that took the time


class Size(NamedTuple):
    """What the cost of a sequence depends on.

    Attributes:
        rows: vectors that are projected, queries and keys.
        pairs: scores of one head, queries x keys.
        layers: the part of the model's layers that run.
    """

    rows: int
    pairs: int
    layers: float = 1.0


@dataclass(slots=True)
class Costs:
    """The costs of one model: base + row * rows + pair * pairs, and what is spared by running several together.

    Attributes:
        base, row, pair: seconds.
        tiny: for each tiny length, from 0, how many sequences run together, and what part of their cost remains.
    """

    base: float = 0.0
    row: float = 0.0
    pair: float = 0.0
    tiny: list[tuple[int, float]] = field(default_factory=list)

    def of(self, size: Size) -> float:
        """Return the seconds that one sequence takes by itself."""
        return (self.base + self.row * size.rows + self.pair * size.pairs) * size.layers

    def together(self, length: int) -> tuple[int, float]:
        """Return how many sequences of a length are best run together, and what part of their cost remains."""
        return self.tiny[length] if length < len(self.tiny) else (1, 1.0)


@dataclass(slots=True)
class CostCorrection:
    """What runs of one kind really take, relative to what is predicted: an exponentially weighted average."""

    factor: float = 1.0

    def learn(self, predicted: float, seconds: float) -> None:
        """Take note of a run.

        Args:
            predicted: its cost, uncorrected.
            seconds: what it took.
        """
        if predicted > 0:
            ratio = min(FURTHEST, max(1 / FURTHEST, seconds / predicted))
            self.factor += WEIGHT * (ratio - self.factor)


class Subject(Protocol[S]):
    """What is measured."""

    def draw(self, length: int, count: int) -> Sequence[S]:
        """Draw sequences of a length."""
        ...

    def run(self, sequences: Sequence[S]) -> object:
        """Run sequences of one length together."""
        ...

    def is_sound(self, length: int, count: int) -> bool:
        """Return whether so many of a length have together the answers, to the bit, that they have one by one."""
        ...


def measure(subject: Subject[S]) -> Costs:
    """Measure what sequences cost."""
    measured = list(_lengths(subject))
    sizes = np.array([(1.0, 2 * length, length**2) for length, _ in measured])
    seconds = np.array([taken for _, taken in measured])
    # Relative errors count: a short sequence is to be predicted as well as a long one.
    found, *_ = np.linalg.lstsq(sizes / seconds[:, None], np.ones(len(seconds)), rcond=None)
    base, row, pair = (max(0.0, float(each)) for each in found)
    return Costs(base, row, pair, list(_tiny(subject)))


def _lengths(subject: Subject[S]) -> Iterator[tuple[int, float]]:
    for length in LENGTHS:
        seconds = _seconds(subject, length, 1)
        yield length, seconds
        if seconds > PATIENCE:
            return


def _tiny(subject: Subject[S]) -> Iterator[tuple[int, float]]:
    """Yield for each length from 0 how many run together and what remains of their cost, for as long as it pays."""
    before = -1
    end = time.perf_counter() + BUDGET
    for length in TINY:
        if time.perf_counter() > end:
            return
        count = min(MOST, ROWS // length)
        alone = _seconds(subject, length, 1)
        if alone > PATIENCE:
            return
        remains = _seconds(subject, length, count) / count / alone
        if remains > PAYS or not all(subject.is_sound(length, each) for each in {2, 3, count}):
            return
        yield from [(count, remains)] * (length - before)
        before = length


def _seconds(subject: Subject[S], length: int, count: int) -> float:
    """Return the least of several times: what else the machine does only adds."""
    sequences = subject.draw(length, count)
    best = np.inf
    for _ in range(REPETITIONS):
        begun = time.perf_counter()
        subject.run(sequences)
        best = min(best, time.perf_counter() - begun)
        if best > PATIENCE:
            break
    return float(best)
