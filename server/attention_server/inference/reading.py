"""The part of a block of rows that an output reads: its rows and heads."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from attention_proto.stages import STAGES
from numpy.typing import NDArray

from attention_server.domain.messages import OutputSpec
from attention_server.inference.key_spans import Ranges, within
from attention_server.inference.masks import HIDDEN, Vectors
from attention_server.inference.planner import OutputPlan
from attention_server.inference.postprocess import Rows, gather, shape_hidden

Hidden = NDArray[np.bool_]


class Block(NamedTuple):
    """Some rows of a site's stages.

    Attributes:
        rows: among the rows that are computed.
        keys: the keys that are computed; all further weights are zeros.
        mask: of these rows and keys, [1 or H, r, keys]; None for no mask.
        stages: of these rows and keys, by name, [H, r, keys] or [H, r]; of one head or a reduction of heads [1, ..].
        head: the one that it has; None for all heads, or their reduction.
        is_reduced: whether it has the mean or maximum of the heads that the output chooses.
    """

    rows: slice
    keys: slice
    mask: Vectors | None
    stages: Mapping[str, Vectors]
    head: int | None = None
    is_reduced: bool = False


class ReducedHeads(NamedTuple):
    """Some heads of a stage that are reduced.

    Attributes:
        stage: its name.
        reduce: `mean` or `max`.
        heads: reduced together.
    """

    stage: str
    reduce: str
    heads: tuple[int, ...]


class Part(NamedTuple):
    """The part of a block that an output reads.

    Attributes:
        places: of the rows, in the output.
        heads: places of the heads in the output.
        numbers: [heads, r, keys], or a column of one number a row.
        hidden: which keys are masked, [1 or heads, r, keys]; None for none, or where it does not matter.
        keys: the keys.
    """

    places: slice | Rows
    heads: Sequence[int]
    numbers: Vectors
    hidden: Hidden | None
    keys: slice

    def of_head(self, place: int) -> tuple[Vectors, Hidden | None]:
        """Return the numbers of a head by its place among the heads, and the keys that are masked."""
        hidden = None if self.hidden is None else self.hidden[place % len(self.hidden)]  # one may serve all heads
        return self.numbers[place], hidden

    def widened(self, length: int) -> "Part":
        """Return the part with all keys; those that were not computed are masked, with zeros."""
        numbers, hidden = widen(self.numbers, self.hidden, self.keys, length)
        return self._replace(numbers=numbers, hidden=hidden, keys=slice(0, length))


def takes_heads_of(spec: OutputSpec) -> bool:
    """Return whether heads may come one after another: a maximum over heads of sums of keys needs all together."""
    return spec.reduce != "max" or not spec.spans


def widen(numbers: Vectors, hidden: Hidden | None, keys: slice, length: int) -> tuple[Vectors, Hidden]:
    """Return numbers, and which of them are masked, for all keys; those that were not computed are masked zeros."""
    shape = (*numbers.shape[:-1], length)
    wide, masked = np.zeros(shape, np.float32), np.ones(shape, np.bool_)
    wide[..., keys] = numbers
    masked[..., keys] = np.False_ if hidden is None else hidden
    return wide, masked


class Reading:
    """The rows and heads of which an output is made.

    Args:
        output: its plan.
        rows: the positions of its rows, in order; None for all.
        at: by layer, the places of these rows among those computed; None for all.
        shape: heads, rows and keys of its stage, before rows and heads are chosen.
        ranges: of keys that are summed, and stand in place of keys; None for each key by itself.
    """

    def __init__(
        self,
        output: OutputPlan,
        rows: Rows | None,
        at: Mapping[int, Rows | None],
        shape: tuple[int, int, int],
        ranges: Ranges | None = None,
    ) -> None:
        self.rows = np.arange(shape[1]) if rows is None else rows
        self.keys = shape[2] if ranges is None else len(ranges)
        self._ranges = ranges
        self.spec, self.field = output.spec, output.field
        self._at = at
        stage = STAGES[self.spec.name]
        if stage.computed != stage.name:  # heads of links are reduced at once, those of sums over rows in the end
            self.spec = self.spec._replace(name=stage.computed, reduce="mean" if stage.is_links else "none")
        self._all_heads = shape[0]
        heads = self.spec.heads or tuple(range(shape[0]))
        self._heads: dict[int, tuple[Sequence[int], tuple[int, ...]]]
        self._heads = {output.layer: (range(len(heads)), self.spec.heads)}
        self._heads |= {layer: ([0], self.spec.heads) for layer in output.folded}
        for layer in {layer for layer, _ in output.pairs}:
            places = [i for i, pair in enumerate(output.pairs) if pair[0] == layer]
            self._heads[layer] = (places, tuple([output.pairs[i][1] for i in places]))
        self.layers = len(self._heads)
        self.is_folded = bool(output.folded)
        self.heads = 1 if self.spec.reduce != "none" else sum(len(places) for places, _ in self._heads.values())

    def part(self, layer: int, block: Block) -> Part | None:
        """Return the part of a block that the output reads; None for none."""
        at, (heads, chosen) = self._at[layer], self._heads[layer]
        of_block: slice | Rows = slice(None)
        places: slice | Rows = block.rows
        if at is not None:
            places = np.flatnonzero((at >= block.rows.start) & (at < block.rows.stop))
            of_block = at[places] - block.rows.start
            if not len(places):
                return None
        if block.head is not None:
            order = chosen or range(self._all_heads)
            if block.head not in order:
                return None
            heads = [heads[order.index(block.head)]]
        if block.head is not None or block.is_reduced:
            chosen = ()
        spec = self.spec._replace(heads=chosen, pool="none")
        hidden = None
        if spec.top_k and block.mask is not None:
            hidden = shape_hidden(block.mask[:, of_block] == HIDDEN, spec)
        ranges = None if self._ranges is None else within(self._ranges, block.keys)
        numbers = gather(
            block.stages[self.spec.name], of_block, spec._replace(reduce="none") if block.is_reduced else spec, ranges
        )
        keys = block.keys if ranges is None else slice(0, len(ranges))
        return Part(places, [0] if spec.reduce != "none" else heads, numbers, hidden, keys)

    def reduced_heads(self, layer: int) -> ReducedHeads | None:
        """Return the heads of a layer of which one number is made; None where each is read by itself."""
        if self.spec.reduce == "none":
            return None
        return ReducedHeads(self.spec.name, self.spec.reduce, self._heads[layer][1] or tuple(range(self._all_heads)))

    @property
    def takes_heads(self) -> bool:
        """Whether heads may come one after another."""
        return takes_heads_of(self.spec)

    def share(self, layer: int) -> np.float32:
        """Return the share of a layer's heads in all heads."""
        return np.float32(len(self._heads[layer][0]) / sum(len(places) for places, _ in self._heads.values()))
