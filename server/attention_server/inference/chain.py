"""A loaded chain: segments and sites in turn, over one namespace of tensors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Segment as SegmentEntry
from attention_proto.chains import CROSS
from numpy.typing import NDArray

from attention_server.contexts.past import Continuation, Widths
from attention_server.inference.engine.protocol import Graph, Run
from attention_server.inference.layer import KEYS, LoadedLayer, Rows, Tensors
from attention_server.inference.long_site import compute_long
from attention_server.inference.masks import LongMask, SiteMask, Vectors, at_site
from attention_server.inference.pack import SiteBatch, Stages, join_rows, split_rows
from attention_server.inference.reductions import NO_REDUCTIONS, LayerReductions
from attention_server.inference.row_blocks import run_rows
from attention_server.inference.scores import split_heads
from attention_server.inference.step import step_stages
from attention_server.inference.walk import (
    CONTRIBUTIONS,
    EMBEDDINGS,
    NO_NAMES,
    Names,
    Segment,
    Step,
    Walk,
    Wanted,
    make_segment,
    walks,
)


@dataclass(frozen=True)
class LoadedChain:
    """A chain of a model with its graphs.

    Attributes:
        layers: its sites, first to last.
        entries: the manifest's entries of its segments; empty in a block that projects nothing.
        graphs: the model's graphs by file name.
        shared: the names of the graphs that run on the rows of several sequences.
    """

    layers: Sequence[LoadedLayer]
    entries: Sequence[SegmentEntry]
    graphs: Mapping[str, Graph]
    shared: Names = NO_NAMES

    def stages(self, batches: Sequence[SiteBatch], walk: Walk, run: Run) -> None:
        """Compute the stages of the sites of a walk, for sequences of any lengths; write them into the batches.

        Args:
            batches: the sequences, and the tensors that the chain begins with.
            walk: the segments and sites that run.
            run: the computation that this is a part of.
        """
        own = 0  # sites with keys of this chain
        for place, (layer, step) in enumerate(zip(self.layers, walk.steps, strict=False)):
            is_last = place == len(walk.steps) - 1
            if is_last and batches[0].pooling is not None:
                self._pool(layer, batches[0], run)
                return
            for batch in batches:
                batch.stages.append({EMBEDDINGS: batch.tensors["query"]} if EMBEDDINGS in step.wanted else {})
            if step.segment is not None:
                self._advance(step.segment, batches, run)
            behind = walk.steps[place - 1].behind if place else NO_NAMES
            for batch in batches:
                if behind:
                    batch.stages[-2].update({name: batch.tensors[name] for name in behind})
                batch.stages[-1].update(self._attend(layer, own, step, batch, run, is_last=is_last))
            own += layer.kept is None
        if walk.end is not None:
            self._advance(walk.end, batches, run)
            for batch in batches:
                batch.stages[-1].update({name: batch.tensors[name] for name in walk.steps[-1].behind})

    def continued(self, batches: Sequence[SiteBatch], wanted: Wanted, kept: Names, run: Run) -> None:
        """Compute the stages wanted of sequences behind prefixes; of those that are kept, every site's k and v too.

        Args:
            batches: the sequences; either all of them are kept, or none. Their continuations receive their keys and
                values.
            wanted: stages of each site up to the last one.
            kept: the names of tensors that a memory keeps.
            run: the computation that this is a part of.

        Raises:
            InvalidRequest: a number is beyond the range of FP16, in which the prefix is kept.
        """
        keeps = any(each.keeps for batch in batches for each in batch.continued)
        further = len(self.layers) - len(wanted) if keeps else 0
        walk = self.walk(wanted + (NO_NAMES,) * further, kept, NO_NAMES, keeps)
        reductions = batches[0].reductions
        if reductions is not None and further:
            of_wanted = lambda place: reductions(place) if place < len(wanted) else NO_REDUCTIONS  # noqa: E731
            batches[0].reductions = of_wanted
        try:
            for batch in batches:
                for each in batch.continued:
                    each.open(batch.tensors["query"].shape[1], self.key_widths)
            self.stages(batches, walk, run)
        except BaseException:
            for batch in batches:
                for each in batch.continued:
                    each.close()
            raise
        for batch in batches:
            del batch.stages[len(wanted) :]

    @cached_property
    def key_widths(self) -> Widths:
        """The widths of k and v of each site with keys of this chain."""
        return tuple([each.key_widths for each in self.layers if each.kept is None])

    @cached_property
    def walk(self) -> Callable[[Wanted, Names, Names, bool], Walk]:
        """The function that plans a walk; see `walks`."""
        return walks(self.entries, self.layers, self.graphs, self.shared)

    @cached_property
    def segments(self) -> list[Segment]:
        """Every segment with all of its outputs."""
        graphs = [(self.graphs[each.graph.name], not each.rows_dependent) for each in self.entries]
        made = [make_segment(graph, list(graph.outputs), is_by_row=by_row) for graph, by_row in graphs]
        return [segment for segment in made if segment is not None]

    @cached_property
    def reads(self) -> Names:
        """The inputs of segments."""
        return frozenset(name for each in self.segments for name in each.inputs)

    def project(self, tensors: Tensors, run: Run) -> None:
        """Run the first segment with all of its outputs; without segments, k is the key and v the value."""
        if self.segments:
            self._advance(self.segments[0], [SiteBatch(tensors)], run)
        else:
            tensors["k"], tensors["v"] = tensors["key"], tensors["value"]

    def warm(self, tensors: Tensors, run: Run) -> None:
        """Run every graph once, so that no request waits for a first allocation."""
        self.project(tensors, run)
        for index, layer in enumerate(self.layers):
            layer.read_keys(tensors)
            layer.warm(tensors, run)
            if index + 1 < len(self.segments):
                self._advance(self.segments[index + 1], [SiteBatch(tensors)], run)

    def _advance(self, segment: Segment, batches: Sequence[SiteBatch], run: Run) -> None:
        """Run a segment: take its inputs from the tensors of all sequences, and write its outputs there."""
        if len(batches) == 1 or not segment.is_shared:
            for batch in batches:
                feeds = {name: batch.tensors[name] for name in segment.inputs}
                batch.tensors.update(zip(segment.tensors, self._run(segment, feeds, run), strict=True))
            return
        taken = {name: [batch.tensors[name] for batch in batches] for name in segment.inputs}
        shapes = [each.shape[:2] for each in next(iter(taken.values()))]
        feeds = {name: join_rows(arrays) for name, arrays in taken.items()}
        for name, found in zip(segment.tensors, self._run(segment, feeds, run), strict=True):
            for batch, part in zip(batches, split_rows(found, shapes), strict=True):
                batch.tensors[name] = part

    def _run(self, segment: Segment, feeds: Mapping[str, NDArray[Any]], run: Run) -> list[NDArray[Any]]:
        if segment.is_by_row and self.layers[0].device == "cpu":
            return run_rows(segment.graph, segment.outputs, feeds, run)
        return segment.graph.run(segment.outputs, feeds, run)

    def _pool(self, layer: LoadedLayer, batch: SiteBatch, run: Run) -> None:
        """Compute the means of rows of the last site's output alone."""
        assert batch.pooling is not None
        if batch.rows is not None:
            batch.tensors["query"] = batch.tensors["query"][:, batch.rows]
        batch.stages.append({"output": layer.pool(batch.tensors, batch.pooling, run)})

    def _attend(self, layer: LoadedLayer, own: int, step: Step, batch: SiteBatch, run: Run, *, is_last: bool) -> Stages:
        """Return the stages of a site; `own` is its place among the sites with keys of this chain."""
        tensors, rows = batch.tensors, batch.rows if is_last else None
        if layer.kept is not None and step.attends:
            layer.read_keys(tensors)
        added = at_site(batch.added, layer.about.name) if layer.axes is CROSS else None
        reduced = None if batch.reductions is None else batch.reductions(len(batch.stages) - 1)
        if batch.continued and layer.kept is None:
            return self._continued(layer, own, step, tensors, added, rows, run, batch.continued, reduced)
        return self._site(layer, step, tensors, added, rows, run, 0, reduced)

    def _continued(
        self,
        layer: LoadedLayer,
        own: int,
        step: Step,
        tensors: Tensors,
        added: Vectors | LongMask | None,
        rows: Rows | None,
        run: Run,
        continued: Sequence[Continuation],
        reductions: LayerReductions | None,
    ) -> Stages:
        """Return the stages of a site behind prefixes.

        Args:
            layer: the site.
            own: its place among the sites with keys of this chain.
            step: the site and its stages.
            tensors: receives the site's results.
            added: the request's mask, of one sequence.
            rows: the query rows to compute; None for all.
            run: the computation that this is a part of.
            continued: the prefix of each sequence.
            reductions: of a long sequence.
        """
        first = continued[0]
        if not step.attends and not any(each.keeps for each in continued):
            return {}
        if self.is_step(layer, step, tensors["k"].shape[1]) and reductions is None:
            each_own = zip(continued, tensors["k"], tensors["v"], strict=True)
            pieces = [each.pieces(own, k, v) for each, k, v in each_own]
            if not step.attends:
                return {}
            assert not isinstance(added, LongMask)  # of a long sequence
            stages: Stages = step_stages(layer, tensors, pieces, added, step.wanted, run)
            if step.combine is not None:
                stages[CONTRIBUTIONS] = self._contributions(layer, step.combine, tensors, run)
            return stages
        tensors["k"], tensors["v"] = first.joined(own, tensors["k"][0], tensors["v"][0])
        return self._site(layer, step, tensors, added, rows, run, first.first, reductions)

    def is_step(self, layer: LoadedLayer, step: Step, queries: int) -> bool:
        """Return whether a site computes one query of each sequence by itself, without k and v in one piece."""
        return queries == 1 and layer.takes_steps and step.wanted.isdisjoint(KEYS)

    def _site(
        self,
        layer: LoadedLayer,
        step: Step,
        tensors: Tensors,
        added: Vectors | LongMask | None,
        rows: Rows | None,
        run: Run,
        first: int,
        reductions: LayerReductions | None,
    ) -> Stages:
        """Return the stages of a site, of the rows chosen; cut to them the tensors that are read from here on.

        `first` is the position of the first row among the keys.
        """
        count = tensors[layer.query].shape[1] if first and step.attends and rows is None else 0
        if rows is not None:
            tensors.update({name: tensors[name][:, rows] for name in step.cut})
            added = added.take(rows) if isinstance(added, LongMask) else None if added is None else added[:, rows]
        places = rows if not first else np.arange(first, first + count) if rows is None else first + rows
        stages: Stages = {}
        if step.attends:
            queries, keys = (tensors[name].shape[1] for name in (layer.query, "k"))
            is_long = reductions is not None or layer.block_rows(queries, keys) < queries
            if is_long and layer.attends(step.wanted | step.passed):
                mask = SiteMask(added, layer.own_mask, np.arange(queries) if places is None else places, keys)
                stages = compute_long(layer, tensors, mask, step.wanted, step.passed, run, reductions or NO_REDUCTIONS)
            else:
                assert not isinstance(added, LongMask)  # of a long sequence
                stages = layer.stages(tensors, added, step.wanted, step.passed, run, places)
        if step.combine is not None:
            stages[CONTRIBUTIONS] = self._contributions(layer, step.combine, tensors, run)
        return stages

    def _contributions(self, layer: LoadedLayer, combine: Segment, tensors: Tensors, run: Run) -> Vectors:
        """Return each head's part of the output, [B, H, T, D]: the output of this head alone less that of none."""
        heads = split_heads(tensors["heads"], layer.about.heads)

        def output(kept: slice) -> Vectors:
            some = np.zeros_like(heads)
            some[:, kept] = heads[:, kept]
            packed = some.transpose(0, 2, 1, 3).reshape(tensors["heads"].shape)
            feeds = {name: tensors[name] for name in combine.inputs} | {"heads": packed}
            (found,) = combine.graph.run_path(combine.outputs, feeds, run)
            return found  # type: ignore[return-value] # all graphs give float32

        none = output(slice(0))
        return np.stack([output(slice(head, head + 1)) - none for head in range(layer.about.heads)], 1)
