"""The results of a model's head: logits of rows, and predictions. Rows run in blocks, which bounds memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Predictor
from attention_proto.folder import LOGITS

from attention_server.domain.messages import Array, Candidate, Prediction, TopK
from attention_server.inference import validation as check
from attention_server.inference.engine.protocol import Run
from attention_server.inference.forward import Forward
from attention_server.inference.masks import Vectors
from attention_server.inference.planner import OutputPlan, head_source
from attention_server.inference.postprocess import Rows, as_data_type, read_rows
from attention_server.inference.prediction_plan import PredictionPlan
from attention_server.inference.preprocess import PreparedInput
from attention_server.inference.row_selection import positions, predictor_rows
from attention_server.inference.sampling import draw
from attention_server.inference.top_k import top_k

MAX_NUMBERS = 2**20  # held at once; the choice of the largest takes some 30 bytes for each


class Chosen(NamedTuple):
    """The label of a row with its probability, and the most probable labels and probabilities, descending."""

    id: int
    probability: float
    top: list[int]
    values: list[float]


@dataclass(frozen=True, slots=True)
class HeadResults:
    """The results of the head for one sequence.

    Attributes:
        stages: of the last layer that was computed.
        computed: the rows that were computed; None for all.
        prepared: the sequence.
        forward: runs the head.
        run: the computation that this is a part of.
        compute: runs the head in place of `forward.head`; None for that.
    """

    stages: Mapping[str, Vectors]
    computed: Rows | None
    prepared: PreparedInput
    forward: Forward
    run: Run
    compute: Callable[[Sequence[str], Vectors, Run], list[Vectors]] | None = None

    def logits(self, output: OutputPlan) -> Array:
        """Return the logits of the rows that an output chooses, [rows, V].

        Raises:
            InvalidRequest: a number overflowed, or FP16 cannot hold it.
        """
        places = positions(read_rows(output.spec, self.prepared.queries, None), self.computed)
        read = self._vectors if places is None else self._vectors[places]
        found = []
        for block in _blocks(len(read), self.forward.manifest.logits_dim):
            (part,) = self._head((LOGITS,), read[block])
            check.no_overflow(part, self.prepared.path)
            found.append(as_data_type(part, output.spec, output.field))
        return np.concatenate(found)

    def predictions(self, plan: PredictionPlan) -> Iterator[Prediction]:
        """Yield the label of each predictor and row, with the most probable ones; of a mean of rows one."""
        for predictor in self.forward.manifest.predictors:
            of_mean = predictor.rows == Predictor.ROWS_MEAN
            rows = predictor_rows(predictor, self.prepared, plan.rows)
            if not len(rows):
                continue
            read = self._vectors.mean(0, keepdims=True) if of_mean else self._vectors[positions(rows, self.computed)]
            numbers = [None] if of_mean else rows.tolist()
            names = self.forward.labels[predictor.name]
            for row, chosen in zip(numbers, self._choose(predictor.name, plan, read, numbers), strict=True):
                top = tuple(map(Candidate, chosen.top, map(names.__getitem__, chosen.top), chosen.values))
                yield Prediction(predictor.name, names[chosen.id], chosen.probability, row, chosen.id, top)

    @property
    def _vectors(self) -> Vectors:
        """The input of the head, [rows computed, D]."""
        return self.stages[head_source(self.forward.manifest)]

    def _head(self, outputs: Sequence[str], rows: Vectors) -> list[Vectors]:
        return (self.compute or self.forward.head)(outputs, rows, self.run)

    def _choose(
        self, predictor: str, plan: PredictionPlan, read: Vectors, rows: Sequence[int | None]
    ) -> Iterator[Chosen]:
        """Yield the label of each row: the most probable one, or a drawn one."""
        labels = self.forward.manifest.logits_dim or len(self.forward.labels[predictor])
        for block in _blocks(len(read), labels):
            probabilities, logits = self._numbers(predictor, read[block], of_logits=plan.sample is not None)
            largest = top_k(probabilities, plan.top, None) if plan.top else _largest(probabilities)
            ids = largest.indices[:, 0].astype(np.intp)
            if plan.sample is not None:
                numbered = zip(logits, rows[block], strict=True)
                ids = np.array([draw(each, plan.sample, self.prepared.seed, row or 0) for each, row in numbered])
            chosen = np.take_along_axis(probabilities, ids[:, None], -1)[:, 0]
            tops = [each[:, : plan.top].tolist() for each in largest]
            yield from map(Chosen, ids.tolist(), chosen.tolist(), *tops)

    def _numbers(self, predictor: str, read: Vectors, *, of_logits: bool) -> tuple[Vectors, Vectors]:
        """Return the probabilities of a predictor for some rows, and the logits if wanted, else the same again.

        Where the head gives no logits, the logarithms of the probabilities stand in: the softmax is the same at any
        temperature.

        Raises:
            InvalidRequest: a number overflowed.
        """
        names = (predictor, LOGITS) if of_logits and self.forward.manifest.logits_dim else (predictor,)
        probabilities, *logits = self._head(names, read)
        check.no_overflow(probabilities, self.prepared.path)
        if logits or not of_logits:
            return probabilities, logits[0] if logits else probabilities
        with np.errstate(divide="ignore"):
            return probabilities, np.log(probabilities)


class StepsHead:
    """The head of several sequences of one row each, run on all rows at once.

    Args:
        forward: runs the head.
        vectors: the input of the head, [B, D].
    """

    def __init__(self, forward: Forward, vectors: Vectors) -> None:
        self._forward = forward
        self._vectors = vectors
        self._found: dict[tuple[str, ...], list[list[Vectors]]] = {}  # by outputs, of each sequence

    def run(self, place: int, outputs: Sequence[str], rows: Vectors, run: Run) -> list[Vectors]:  # noqa: ARG002 # its own
        """Return outputs of the one row of a sequence, each [1, labels]."""
        names = tuple(outputs)
        if names not in self._found:
            blocks = _blocks(len(self._vectors), self._forward.manifest.logits_dim)
            of_blocks = [self._forward.head(names, self._vectors[block], run) for block in blocks]
            each_row = [zip(*of_block, strict=True) for of_block in of_blocks]
            self._found[names] = [[x[None] for x in row] for of_block in each_row for row in of_block]
        return self._found[names][place]


def _blocks(rows: int, labels: int) -> Iterator[slice]:
    """Yield blocks of rows, each with at most MAX_NUMBERS numbers, and at least one row."""
    size = max(1, MAX_NUMBERS // max(1, labels))
    return (slice(begin, begin + size) for begin in range(0, rows, size))


def _largest(probabilities: Vectors) -> TopK:
    """Return the position of each row's largest number, and the number, [N, 1]: quicker than `top_k` of one."""
    ids = probabilities.argmax(-1, keepdims=True)
    return TopK(ids, np.take_along_axis(probabilities, ids, -1))
