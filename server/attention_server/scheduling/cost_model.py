"""Prediction of the seconds that a sequence takes in one slot: measured at load, corrected by real runs."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

S = TypeVar("S")

LENGTHS = (8, 32, 128)  # T at which single sequences are measured
BATCH_LENGTHS = (1, 2, 4, 8, 16)  # T at which batches of sequences are measured
PACK_LENGTHS = (2, 8, 16, 32, 64)  # T at which packs of sequences are measured
LONGEST_PACKED = 128  # T of a pack's sequences: longer ones gain nothing
MAX_BATCH_ROWS = 128  # of a batch: more gains nothing
PACK_ROWS = 512  # of a pack: from there on the products take the time, not the reading of the matrices
MIN_PACK_ROWS = 16
PACK_SECONDS = 0.1  # of a pack: the jobs behind it wait for so long
MAX_BATCH = 32  # sequences in one batch
MAX_BATCH_SHARE = 0.85  # a batch has to take less than this share of the time of single sequences
MAX_SECONDS = 0.1  # seconds: a slower run is measured once, and larger ones are not measured
BATCH_SECONDS = 0.5  # seconds for all batches: a large model had better start than batch
REPETITIONS = 4  # at least
SHORT_SECONDS = 0.01  # seconds of repeated short runs: a busy machine spoils a few runs, not all
LEARNING_RATE = 0.1  # weight of the latest run in a correction
MAX_CORRECTION = 16.0  # bound on a correction and on its inverse: beyond, the time went elsewhere


class Size(NamedTuple):
    """The size of a sequence, on which its cost depends.

    Attributes:
        rows: projected vectors, T + S.
        pairs: scores of one head, T x S.
        layers: share of the model's layers that run.
    """

    rows: int
    pairs: int
    layers: float = 1.0


@dataclass(slots=True)
class Costs:
    """The costs of one model: base + row * rows + pair * pairs, and the savings of batches.

    Attributes:
        base: seconds of any sequence.
        row: seconds of each row.
        pair: seconds of each pair.
        batches: by T from 0, the best number of sequences in a batch, and the remaining share of the cost.
        shared: the names of graphs that run on the rows of several sequences, each with the bits that it has alone.
        stacked: the largest T of sequences of one length that a site computes as one batch in such a pass.
        pack_rows: the rows of such a pass: fewer in a large model, so that the pass takes PACK_SECONDS at most.
    """

    base: float = 0.0
    row: float = 0.0
    pair: float = 0.0
    batches: list[tuple[int, float]] = field(default_factory=list)
    shared: frozenset[str] = frozenset()
    stacked: int = 0
    pack_rows: int = PACK_ROWS

    def seconds(self, size: Size) -> float:
        """Return the predicted seconds of one sequence by itself."""
        return (self.base + self.row * size.rows + self.pair * size.pairs) * size.layers

    def best_batch(self, length: int) -> tuple[int, float]:
        """Return the best number of sequences in a batch, for T = `length`, and the remaining share of the cost."""
        return self.batches[length] if length < len(self.batches) else (1, 1.0)


@dataclass(slots=True)
class CostCorrection:
    """The measured cost of one plan's runs, relative to the prediction: an exponentially weighted average."""

    factor: float = 1.0

    def learn(self, predicted: float, seconds: float) -> None:
        """Update the average by one run.

        Args:
            predicted: uncorrected cost in seconds.
            seconds: measured seconds.
        """
        if predicted > 0:
            ratio = min(MAX_CORRECTION, max(1 / MAX_CORRECTION, seconds / predicted))
            self.factor += LEARNING_RATE * (ratio - self.factor)


class Subject(Protocol[S]):
    """A model to measure."""

    @property
    def max_length(self) -> int:
        """The largest T that it takes; 0 for any."""
        ...

    def clock(self) -> float:
        """Return the seconds that the computations of this thread took so far, without waits if that can be told."""
        ...

    def draw(self, length: int, count: int) -> Sequence[S]:
        """Return `count` random sequences of T = `length`."""
        ...

    def run(self, sequences: Sequence[S]) -> object:
        """Run sequences of one length as a batch."""
        ...

    def is_sound(self, length: int, count: int) -> bool:
        """Return whether a batch has the same answers, to the bit, as its sequences one by one."""
        ...

    @property
    def packs(self) -> bool:
        """Whether sequences of any lengths share a pass, which was found to be sound."""
        ...


def measure(subject: Subject[S]) -> Costs:
    """Measure a model's costs."""
    measured = list(_lengths(subject))
    sizes = np.array([(1.0, 2 * length, length**2) for length, _ in measured])
    seconds = np.array([taken for _, taken in measured])
    # A fit of relative errors, so that short sequences are predicted as well as long ones.
    found, *_ = np.linalg.lstsq(sizes / seconds[:, None], np.ones(len(seconds)), rcond=None)
    base, row, pair = (max(0.0, float(each)) for each in found)
    costs = Costs(base, row, pair)
    if subject.packs:
        costs.batches, costs.pack_rows = _packs(subject)
    else:
        costs.batches = list(_batches(subject))
    return costs


def _lengths(subject: Subject[S]) -> Iterator[tuple[int, float]]:
    for length in _possible(subject, LENGTHS):
        seconds = _seconds(subject, length, 1)
        yield length, seconds
        if seconds > MAX_SECONDS:
            return


def _batches(subject: Subject[S]) -> Iterator[tuple[int, float]]:
    """Yield the entries of `Costs.batches`, by T from 0, for as long as a batch pays."""
    before = -1
    end = time.perf_counter() + BATCH_SECONDS
    for length in _possible(subject, BATCH_LENGTHS):
        if time.perf_counter() > end:
            return
        count = min(MAX_BATCH, MAX_BATCH_ROWS // length)
        alone = _seconds(subject, length, 1)
        if alone > MAX_SECONDS:
            return
        remains = _seconds(subject, length, count) / count / alone
        if remains > MAX_BATCH_SHARE or not all(subject.is_sound(length, each) for each in {2, 3, count}):
            return
        yield from [(count, remains)] * (length - before)
        before = length


def _packs(subject: Subject[S]) -> tuple[list[tuple[int, float]], int]:
    """Return the entries of `Costs.batches` for packs, and `Costs.pack_rows`.

    A pack costs no length more than sequences one by one; where time is up, and beyond the measured lengths, no
    saving is assumed.
    """
    found: list[tuple[int, float]] = []
    rows = MIN_PACK_ROWS
    end = subject.clock() + BATCH_SECONDS
    for length in sorted({min(each, subject.max_length or each) for each in PACK_LENGTHS}):
        remains = 1.0
        if subject.clock() < end and (alone := _seconds(subject, length, 1)) < MAX_SECONDS:
            count = max(2, MAX_BATCH_ROWS // length)
            seconds = _seconds(subject, length, count)
            remains = min(1.0, seconds / count / alone)
            rows = max(rows, min(PACK_ROWS, int(count * length * PACK_SECONDS / seconds)))
        found += [(max(2, min(MAX_BATCH, PACK_ROWS // length)), remains)] * (length + 1 - len(found))
    longest = min(LONGEST_PACKED, subject.max_length or LONGEST_PACKED)
    found += [(max(2, PACK_ROWS // longest), 1.0)] * (longest + 1 - len(found))
    return found, rows


def _possible(subject: Subject[S], lengths: Sequence[int]) -> list[int]:
    """Return the lengths that the model takes, at least one."""
    longest = subject.max_length or lengths[-1]
    return [length for length in lengths if length <= longest] or [longest]


def _seconds(subject: Subject[S], length: int, count: int) -> float:
    """Return the least of several measurements: a busy machine only adds time."""
    sequences = subject.draw(length, count)
    best, repetitions = np.inf, 0
    end = time.perf_counter() + SHORT_SECONDS
    while repetitions < REPETITIONS or time.perf_counter() < end:
        begun = subject.clock()
        subject.run(sequences)
        best, repetitions = min(best, subject.clock() - begun), repetitions + 1
        if best > MAX_SECONDS:
            break
    return float(best)
