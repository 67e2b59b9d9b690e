"""Outputs of a long sequence, made of blocks of rows: each block is reduced, and dropped."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from attention_proto.stages import STAGES

from attention_server.domain.messages import Array, OutputSpec, OutputValue, TopK
from attention_server.inference import validation as check
from attention_server.inference.alignment import align, largest_keys
from attention_server.inference.key_spans import key_ranges
from attention_server.inference.layer import LoadedLayer
from attention_server.inference.masks import Vectors
from attention_server.inference.over_layers import OverLayers, Rollout
from attention_server.inference.planner import OutputPlan, Plan, checked_stages, index_type, unread_stages
from attention_server.inference.postprocess import Rows, finish, read_rows, shape_stage
from attention_server.inference.preprocess import PreparedInput, separators
from attention_server.inference.reading import Block, Hidden, Part, Reading, ReducedHeads, widen
from attention_server.inference.reduction import Reduction, Sums
from attention_server.inference.row_selection import is_cut, positions, unmasked_rows
from attention_server.inference.row_statistics import OVER_ROWS

MAX_TOGETHER = 2**18  # numbers of several heads that are ordered together, so that they fit a cache
BY_BLOCK = frozenset(
    stage.name for stage in STAGES.values() if stage.is_pairwise or stage.source or stage.name == "lse"
)


class Kept(Reduction):
    """An output that has each of its rows, whole or their top k."""

    def __init__(self, reading: Reading) -> None:
        super().__init__(reading)
        spec, sizes = reading.spec, [reading.heads, len(reading.rows)]
        if spec.top_k:
            sizes.append(min(spec.top_k, reading.keys))
        elif STAGES[spec.name].is_pairwise:
            sizes.append(reading.keys)
        self._values: Array = np.zeros(sizes, np.float16 if spec.data_type == "FP16" else np.float32)
        self._indices = np.empty(sizes, index_type(reading.keys)) if spec.top_k else None

    def result(self) -> OutputValue:
        """Return the rows; of a pooled output, which has one, this row."""
        row: int | slice = slice(None) if self.reading.spec.pool == "none" else 0
        values = self._values[:, row]
        return values if self._indices is None else TopK(self._indices[:, row], values)

    def _add(self, layer: int, part: Part, sums: Sums) -> None:  # noqa: ARG002 # as every reduction
        hidden = None if part.hidden is None else np.broadcast_to(part.hidden, part.numbers.shape)
        is_small = part.numbers.size <= MAX_TOGETHER and not self._needs_fillers(part.numbers, part.hidden)
        count = len(part.heads)
        for some in [slice(0, count)] if is_small else [slice(place, place + 1) for place in range(count)]:
            own = None if hidden is None else hidden[some]
            self._add_heads(part._replace(heads=part.heads[some], numbers=part.numbers[some], hidden=own))

    def _add_heads(self, part: Part) -> None:
        """Add some heads together."""
        spec, field = self.reading.spec, self.reading.field
        numbers, hidden, keys = part.numbers, part.hidden, part.keys
        if spec.top_k and self._needs_fillers(numbers, hidden):
            numbers, hidden = widen(numbers, hidden, keys, self.reading.keys)
            keys = slice(0, self.reading.keys)
        found = finish(numbers, spec, hidden, field)
        heads = np.array(part.heads)
        at = (heads, part.places) if isinstance(part.places, slice) else (heads[:, None], part.places)
        if isinstance(found, TopK):
            assert self._indices is not None
            self._indices[at] = found.indices + np.array(keys.start, self._indices.dtype)
            self._values[at] = found.values
        elif found.ndim > 2:
            self._values[(*at, keys)] = found
        else:
            self._values[at] = found

    def _needs_fillers(self, numbers: Vectors, hidden: Hidden | None) -> bool:
        """Return whether in some row masked keys, of which any may come first, fill up the top k."""
        count = numbers.shape[-1]
        seen = count if hidden is None else count - int(hidden.sum(-1).max())
        return bool(count < self.reading.keys and seen < self.reading.spec.top_k)


class Links(Reduction):
    """For each row the key with the largest mean weight."""

    def __init__(self, reading: Reading) -> None:
        super().__init__(reading)
        self._keys = np.zeros(len(reading.rows), np.intp)

    def result(self) -> OutputValue:
        """Return the links."""
        return align(self._keys, self.reading.rows)

    def _add(self, layer: int, part: Part, sums: Sums) -> None:  # noqa: ARG002 # as every reduction
        self._keys[part.places] = largest_keys(part.numbers[0], part.keys.start)


class Pooled(Reduction):
    """The mean of an output's rows. Sums of blocks are added in float64: thousands of rows add no error."""

    def __init__(self, reading: Reading) -> None:
        super().__init__(reading)
        self._sums = self.sums()

    def sums(self) -> Sums:
        """Return the sum of rows, [heads, S], and which keys are masked in every row."""
        shape = (self.reading.heads, self.reading.keys if STAGES[self.reading.spec.name].is_pairwise else 1)
        return [np.zeros(shape), np.ones(shape, np.bool_)]

    def close(self, strips: Sequence[Sums]) -> None:
        """Add up the strips of a layer; each layer adds to heads of its own."""
        for total, masked in strips:
            self._sums[0] += total
            self._sums[1] &= masked

    def result(self) -> OutputValue:
        """Return the mean."""
        spec, (total, masked) = self.reading.spec, self._sums
        mean = (total / len(self.reading.rows)).astype(np.float32)
        return finish(mean, spec, masked if spec.top_k else None, self.reading.field)

    def _add(self, layer: int, part: Part, sums: Sums) -> None:  # noqa: ARG002 # as every reduction
        columns = part.keys if STAGES[self.reading.spec.name].is_pairwise else slice(None)
        for place, head in enumerate(part.heads):
            numbers, hidden = part.of_head(place)
            sums[0][head, columns] += numbers.sum(-2)
            sums[1][head, columns] &= np.False_ if hidden is None else np.all(hidden, -2)


class Summed(Reduction):
    """An output that is one for all rows, such as the sum of weights on each key.

    Args:
        reading: the rows and heads.
        spec: as requested.
        separators: which keys are special tokens; None where the keys are of no text.
        first: the position of the first query among the keys.
    """

    def __init__(self, reading: Reading, spec: OutputSpec, separators: Hidden | None, first: int) -> None:
        super().__init__(reading)
        self._spec, self._separators, self._first = spec, separators, first
        self._sum_rows, self._finish = OVER_ROWS[spec.name]
        self._sums = self.sums()

    def sums(self) -> Sums:
        """Return the sums, [heads, S] or [heads, columns], and which keys are masked in every row."""
        stage = STAGES[self._spec.name]
        width = len(stage.columns) + 1 if stage.columns else self.reading.keys
        return [np.zeros((self.reading.heads, width)), np.ones((self.reading.heads, self.reading.keys), np.bool_)]

    def close(self, strips: Sequence[Sums]) -> None:
        """Add up the strips of a layer; each layer adds to heads of its own."""
        for total, masked in strips:
            self._sums[0] += total
            self._sums[1] &= masked

    def result(self) -> OutputValue:
        """Return the output."""
        total, masked = self._sums
        spec = self._spec._replace(heads=(), pool="first")  # the heads are chosen, and there is one row
        hidden = masked[:, None] if spec.top_k else None
        return shape_stage(self._finish(total)[:, None].astype(np.float32), None, spec, hidden, self.reading.field)

    def _add(self, layer: int, part: Part, sums: Sums) -> None:  # noqa: ARG002 # as every reduction
        if STAGES[self._spec.name].columns:
            part = part.widened(self.reading.keys)
        columns = slice(None) if STAGES[self._spec.name].columns else part.keys
        found = self._sum_rows(part.numbers, self._first + self.reading.rows[part.places], self._separators)
        for place, head in enumerate(part.heads):
            _, hidden = part.of_head(place)
            sums[0][head, columns] += found[place]
            sums[1][head, part.keys] &= np.False_ if hidden is None else np.all(hidden, -2)


class Reductions:
    """The outputs of one long sequence that are made of blocks of rows.

    Args:
        plan: says which outputs.
        prepared: the sequence.
        layers: of the model.
        computed: the rows of the last layer that are computed; None for all.
    """

    def __init__(
        self, plan: Plan, prepared: PreparedInput, layers: Sequence[LoadedLayer], computed: Rows | None
    ) -> None:
        self._path = prepared.path
        self._unread = unread_stages(plan)
        self._checked = [checked_stages(wanted) & BY_BLOCK for wanted in plan.stages]
        last = len(plan.stages) - 1
        self._by_name: dict[str, Reduction] = {}
        self._by_layer: list[list[Reduction]] = [[] for _ in plan.stages]
        for output in plan.outputs:
            if output.spec.name not in BY_BLOCK:
                continue
            made = self._by_name[output.name] = make_reduction(output, prepared, layers, computed, last)
            for index in output.layers:
                self._by_layer[index].append(made)

    def of_layer(self, layer: int) -> "LayerReductions":
        """Return the reductions of one layer."""
        unread = self._unread if layer == 0 else frozenset[str]()
        return LayerReductions(layer, self._by_layer[layer], self._checked[layer], self._path, unread)

    def results(self) -> dict[str, OutputValue]:
        """Return every output by its name."""
        return {name: result_of(each) for name, each in self._by_name.items()}


class LayerReductions(NamedTuple):
    """The reductions of one layer.

    Attributes:
        layer: its position.
        reductions: of the outputs that read it.
        checked: the stages in which an overflow is looked for.
        path: of the sequence, for the error.
        unread: stages that are wanted for an overflow that would show in them alone.
    """

    layer: int
    reductions: Sequence[Reduction]
    checked: frozenset[str]
    path: str
    unread: frozenset[str] = frozenset()

    def sums(self) -> list[Sums]:
        """Return sums of zero for the blocks of one strip."""
        return [each.sums() for each in self.reductions]

    def add(self, block: Block, sums: Sequence[Sums]) -> None:
        """Reduce a block.

        Raises:
            InvalidRequest: a number overflowed, or FP16 cannot hold it.
        """
        for name in self.checked & block.stages.keys():
            check.no_overflow(block.stages[name], self.path)
        for each, own in zip(self.reductions, sums, strict=True):
            each.add(self.layer, block, own)

    @property
    def takes_heads(self) -> bool:
        """Whether all outputs may be made of heads that come one after another."""
        return all(each.reading.takes_heads for each in self.reductions)

    def add_heads(self, rows: slice, keys: slice, heads: Iterable[Mapping[str, Vectors]], sums: Sequence[Sums]) -> None:
        """Reduce a block without a mask, of which the stages come head by head, each [1, ..], checked.

        Raises:
            InvalidRequest: FP16 cannot hold a number.
        """
        reduced = [each.reading.reduced_heads(self.layer) for each in self.reductions]
        totals: dict[ReducedHeads, Vectors] = {}
        for head, stages in enumerate(heads):
            for each, own, of in zip(self.reductions, sums, reduced, strict=True):
                if of is None:
                    each.add(self.layer, Block(rows, keys, None, stages, head), own)
            for of in {of: None for of in reduced if of is not None and head in of.heads}:
                _accumulate(totals, of, stages[of.stage])
        for of in totals:
            if of.reduce == "mean":
                totals[of] /= np.float32(len(of.heads))
        for each, own, of in zip(self.reductions, sums, reduced, strict=True):
            if of is not None:
                each.add(self.layer, Block(rows, keys, None, {of.stage: totals[of]}, is_reduced=True), own)

    def close(self, strips: Sequence[Sequence[Sums]]) -> None:
        """Add up the sums of all strips, in order."""
        for each, own in zip(self.reductions, zip(*strips, strict=True), strict=True):
            each.close(own)


def _accumulate(totals: dict[ReducedHeads, Vectors], of: ReducedHeads, stage: Vectors) -> None:
    """Add a head, in order, to the sum or maximum of heads."""
    if of not in totals:
        totals[of] = stage.copy()
    else:
        (np.add if of.reduce == "mean" else np.maximum)(totals[of], stage, out=totals[of])


NO_REDUCTIONS = LayerReductions(0, (), frozenset(), "")


def make_reduction(
    output: OutputPlan, prepared: PreparedInput, layers: Sequence[LoadedLayer], computed: Rows | None, last: int
) -> Reduction:
    """Return the reduction of one output.

    Args:
        output: its plan.
        prepared: the sequence.
        layers: of the model.
        computed: the rows of the last layer that are computed; None for all.
        last: the position of that layer.
    """
    spec, layer = output.spec, layers[output.layer]
    rows = read_rows(spec, *unmasked_rows(output, layers, prepared))
    at = {index: positions(rows, computed if index == last and is_cut(spec.name) else None) for index in output.layers}
    if spec.fold == "rollout":
        at |= dict.fromkeys(output.folded[:-1])
    shape, ranges = (layer.about.heads, *layer.lengths(prepared)), key_ranges(output, layer, prepared)
    reading = Reading(output, rows, at, shape, ranges)
    if STAGES[spec.name].sums_rows:
        return Summed(reading, spec, separators(prepared, layer.axes), layer.first(prepared))
    if STAGES[spec.name].is_links:
        return Links(reading)
    made: Reduction = Pooled(reading) if spec.pool == "mean" and len(reading.rows) > 1 else Kept(reading)
    if spec.fold == "rollout":
        made = Rollout(Reading(output, rows, at, shape), made, output, ranges)
    elif reading.layers > 1 and reading.spec.reduce != "none":
        made = OverLayers(reading, made, largest=(spec.reduce if spec.fold == "none" else spec.fold) == "max")
    return made


def result_of(reduction: Reduction) -> OutputValue:
    """Return a reduction's output; of layers that are made one it has no axis of heads."""
    value = reduction.result()
    if not reduction.reading.is_folded:
        return value
    return TopK(value.indices[0], value.values[0]) if isinstance(value, TopK) else value[0]  # type: ignore[index] # numbers
