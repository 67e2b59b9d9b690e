"""Prediction of the memory that one sequence takes while it is computed, in the way in which it will run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from attention_proto.attention.v1.attention_pb2 import Manifest
from attention_proto.chains import lengths_by_axes
from attention_proto.offers import lengths
from attention_proto.stages import STAGES, Axis

from attention_server.inference.flash import flash_bytes, flash_rows
from attention_server.inference.head_weights import ROWS, is_by_head
from attention_server.inference.layer import LoadedLayer, runs_in_blocks
from attention_server.inference.long_site import MADE_OF_WEIGHTS, STRIPS
from attention_server.inference.planner import OutputPlan, Plan, stage_bytes, unread_stages
from attention_server.inference.reading import takes_heads_of
from attention_server.inference.reductions import BY_BLOCK

# Arrays as large as the scores of a block: of a graph without weights, added by weights, and added by stages.
GRAPH, OF_WEIGHTS = 1.0, 1.0
OF_TEMPERATURE = 1.0  # in place of those of weights, which NumPy makes then
OF_STAGE = {"scores": 2.0, "lse": 4.0, "entropy": 2.0, "statistics": 3.0}
MASK = 1.0  # of a masked block
MASK_BYTES = 12  # of the arrays that make the mask of one row and key
OF_HEAD = 2.0  # arrays of a block of one head: its scores and weights; a reduction of heads is one more
ENTROPY_BYTES = 16  # of the arrays that make the entropy of one row and key of one head
SPAN_BYTES = 48  # of the sums of one row and span of one head
TOP_BYTES = 8  # of the arrays that order one row and key of one head
SUMMED_BYTES = 8  # of one row and key of one head, in float64 to be summed
ROLLOUT_BYTES = 12  # of one row and key of a block that is multiplied
HIDDEN_WIDTHS = 4  # of a segment's largest tensor, in widths of its rows


@dataclass(frozen=True)
class Peak:
    """The peak of a plan over sequences of any length.

    Attributes:
        plan: says which outputs.
        manifest: of the model.
        layers: of the model.
        widths: Dh, Dv and D of each layer that is computed.
        first: the position of the first query behind a prefix.
        rows: rows of the last layer that are computed; 0 for all.
        window: the most keys that a row sees by the request's mask; 0 for all.
        is_masked: whether the request has a mask.
        slots: blocks that may be computed at once.
    """

    plan: Plan
    manifest: Manifest
    layers: Sequence[LoadedLayer]
    widths: Sequence[tuple[int, int, int]]
    first: int = 0
    rows: int = 0
    window: int = 0
    is_masked: bool = False
    slots: int = 1

    def bytes(self, queries: int, keys: int) -> int:
        """Return the predicted peak in bytes, for T queries and S keys."""
        by_axes = lengths_by_axes(queries, keys, self.first)
        sites = [by_axes[layer.axes] for layer in self.layers]
        if not self.is_long(queries, keys):
            scores = max(4 * layer.about.heads * t * s for layer, (t, s) in zip(self.layers, sites, strict=True))
            return max(scores, stage_bytes(self.plan, self.manifest, sites))
        run = range(len(self.plan.stages))
        kept = sum(self._kept(index, *sites[index]) for index in run)
        sent = sum(self._reduced(output, *sites[output.layer]) for output in self.plan.outputs)
        tensors = max(self._tensors(index, *sites[index]) for index in run)
        return int(kept + sent + tensors + max(self._block(index, *sites[index]) for index in run))

    def is_long(self, queries: int, keys: int) -> bool:
        """Return whether a site that is computed runs in blocks of rows."""
        by_axes = lengths_by_axes(queries, keys, self.first)
        layers = self.layers[: len(self.plan.stages)]
        return runs_in_blocks(layers, [by_axes[layer.axes] for layer in layers])

    def fitting(self, queries: int, keys: int, most: int) -> int:
        """Return the largest number of positions with a peak of at most so many bytes; 0 for none.

        Keys that are the queries' own become fewer with these.
        """
        own = self.first > 0 or keys == queries
        return largest_that(
            lambda length: self.bytes(length, length + keys - queries if own else keys) <= most, queries
        )

    def pairs(self, queries: int, keys: int) -> int:
        """Return the number of scores that are computed; products of a rollout count by their multiply-adds."""
        by_axes = lengths_by_axes(queries, keys, self.first)
        total = 0
        for index, layer in enumerate(self.layers[: len(self.plan.stages)]):
            rows, columns = by_axes[layer.axes]
            rows = min(self.rows, rows) if self.rows and index == len(self.plan.stages) - 1 else rows
            total += layer.about.heads * rows * self._shape_of_block(index, rows, columns)[1]
        for output in self.plan.outputs:
            if output.spec.fold == "rollout":  # a score and its part of a head take Dh + Dv each
                head, value, _ = self.widths[output.layer]
                total += (len(output.folded) - 1) * by_axes[self.layers[output.layer].axes][0] ** 3 // (head + value)
        return total

    def _kept(self, index: int, queries: int, keys: int) -> int:
        """Return the bytes of the stages that stand whole until the answer is made."""
        stages = self.plan.stages[index] - BY_BLOCK
        stages -= unread_stages(self.plan) if self._by_head(index, queries, keys) else frozenset()
        head, value, width = self.widths[index]
        sizes: Mapping[Axis, int] = {"T": queries, "S": keys, "Dh": head, "Dv": value, "D": width}
        layer, size = self.layers[index].about, 0
        for name in stages:
            numbers = 4
            for axis, length in lengths(STAGES[name], layer, self.manifest).items():
                numbers *= length or sizes.get(axis, 1)
            size += numbers
        return size

    def _reduced(self, output: OutputPlan, queries: int, keys: int) -> int:
        """Return the bytes of an output that is made of blocks."""
        spec, stage = output.spec, STAGES[output.spec.name]
        if spec.name not in BY_BLOCK:
            return 0
        heads = 1 if spec.reduce != "none" else len(output.pairs) or len(spec.heads) or self._heads(output)
        rows = len(spec.rows) or queries
        whole, keys = keys, len(spec.spans) or keys
        columns = 1 if stage.column_axis is None else min(spec.top_k or keys, keys)
        size = heads * rows * columns * ((2 if spec.data_type == "FP16" else 4) + (4 if spec.top_k else 0))
        if spec.pool == "mean" or stage.sums_rows:  # sums in float64, for each strip
            size = STRIPS * 9 * heads * (len(stage.columns) or keys)
        if spec.fold == "rollout":  # the product, and that of the layers before
            products = {1: rows, 2: queries + rows}.get(len(output.folded), 2 * queries)
            return size + 4 * products * whole
        if len(output.layers) > 1 and spec.reduce != "none" and not stage.sums_rows:
            size += rows * keys * 5
        return size

    def _heads(self, output: OutputPlan) -> int:
        return self.layers[output.layer].about.heads

    def _tensors(self, index: int, queries: int, keys: int) -> int:
        """Return the bytes of a site's inputs, and of the segment before it."""
        about, (head, value, width) = self.layers[index].about, self.widths[index]
        of_keys = keys * about.key_value_heads * (head + value)
        if not self.manifest.hidden_dim:
            return 4 * (queries * (about.query_dim + width) + of_keys)
        hidden = self.manifest.hidden_dim
        return 4 * (queries * (about.heads * (head + value) + (3 + HIDDEN_WIDTHS) * hidden) + of_keys)

    def _block(self, index: int, queries: int, keys: int) -> float:
        """Return the bytes of the blocks of rows that are computed at once."""
        layer, wanted = self.layers[index], self.plan.stages[index]
        is_last = index == len(self.plan.stages) - 1
        rows = min(self.rows, queries) if is_last and self.rows else queries
        if not self.is_masked and wanted.isdisjoint(BY_BLOCK) and not self.plan.changes and layer.is_flash(rows, keys):
            size = flash_rows(rows)
            block = flash_bytes(layer.about, size, keys, self.widths[index])
            return block * min(self.slots, -(-rows // size))
        if self._by_head(index, rows, keys):
            return self._block_by_head(index, rows, keys)
        size, columns = self._shape_of_block(index, rows, keys)
        sources = {STAGES[name].source or name for name in wanted}
        weights = OF_TEMPERATURE if self._is_tempered(index) else OF_WEIGHTS * ("weights" in sources)
        arrays = GRAPH + weights + sum(OF_STAGE.get(name, 0) for name in wanted)
        number = 4 * arrays * layer.about.heads  # bytes of one row and key
        if self.is_masked or layer.about.causal or layer.about.window or layer.about.HasField("bias"):
            number += 4 * MASK * layer.about.heads + MASK_BYTES
        number += SUMMED_BYTES * any(output.spec.spans and index in output.layers for output in self.plan.outputs)
        number += TOP_BYTES * any(output.spec.top_k and index in output.layers for output in self.plan.outputs)
        number += ROLLOUT_BYTES * any(output.spec.fold == "rollout" for output in self.plan.outputs)
        spans = max([len(each.spec.spans) for each in self.plan.outputs if index in each.layers], default=0)
        of_row = number * columns + SPAN_BYTES * layer.about.heads * min(spans, keys)
        return size * of_row * min(self.slots, -(-rows // size))

    def _by_head(self, index: int, rows: int, keys: int) -> bool:
        """Return whether weights are made head by head: without a mask, where nothing further is read."""
        wanted = self.plan.stages[index] - (unread_stages(self.plan) if index == 0 else frozenset())
        is_last, layer = index == len(self.plan.stages) - 1, self.layers[index]
        masked = self.is_masked or layer.about.causal or layer.about.window
        takes_heads = all(takes_heads_of(output.spec) for output in self.plan.outputs)
        return (
            is_last
            and not masked
            and wanted <= MADE_OF_WEIGHTS.keys()
            and takes_heads
            and is_by_head(layer, rows, keys)
        )

    def _block_by_head(self, index: int, rows: int, keys: int) -> float:
        """Return the bytes of the blocks that are computed at once, and of k, transposed."""
        about, outputs = self.layers[index].about, self.plan.outputs
        is_reduced = any(output.spec.reduce != "none" for output in outputs)
        number = 4 * (OF_HEAD + is_reduced) + ENTROPY_BYTES * ("entropy" in self.plan.stages[index])
        number += SUMMED_BYTES * any(output.spec.spans for output in outputs)
        number += TOP_BYTES * any(output.spec.top_k for output in outputs)
        number += ROLLOUT_BYTES * any(output.spec.fold == "rollout" for output in outputs)
        spans = max([len(each.spec.spans) for each in outputs], default=0)
        of_row = number * keys + SPAN_BYTES * min(spans, keys)
        return 4 * about.key_value_heads * self.widths[index][0] * keys + ROWS * of_row * min(
            self.slots, -(-rows // ROWS)
        )

    def _shape_of_block(self, index: int, rows: int, keys: int) -> tuple[int, int]:
        """Return the number of rows of a block, and the most keys that one computes."""
        about, wanted = self.layers[index].about, self.plan.stages[index]
        own = about.window if about.causal else 2 * about.window
        seen = min(each for each in (self.window, own, keys) if each)
        weights = bool(wanted & BY_BLOCK) or self._is_tempered(index)
        size = min(self.layers[index].block_rows(rows, keys, seen=seen, weights=weights), rows)
        return size, keys if "scores" in wanted else min(keys, seen + size)

    def _is_tempered(self, index: int) -> bool:
        return bool(self.plan.changes) and self.plan.changes[index].makes_weights


def largest_that(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest number from 1 to `most` that fits, where all smaller ones do; 0 for none."""
    low = 0
    while low < most:
        middle = (low + most + 1) // 2
        if fits(middle):
            low = middle
        else:
            most = middle - 1
    return low
