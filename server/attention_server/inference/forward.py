"""The forward pass of a model: the front, then segments and sites in turn, and the head."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Manifest

from attention_server.domain.messages import Tokens
from attention_server.inference.engine.protocol import Graph, Run
from attention_server.inference.labels import Labels
from attention_server.inference.layer import LoadedLayer, Rows, Tensors, split_heads
from attention_server.inference.masks import Vectors
from attention_server.inference.planner import Plan
from attention_server.inference.preprocess import PreparedInput
from attention_server.inference.row_blocks import run_rows
from attention_server.inference.walk import CONTRIBUTIONS, EMBEDDINGS, Segment, Step, Walk, Wanted, make_segment, walks

Stages = dict[str, Vectors]  # of one layer, by name, each with a leading dimension B
POSITIONS, TYPES = "position_ids", "token_type_ids"  # inputs that are made of the text


@dataclass(frozen=True)
class Forward:
    """The forward pass of one model.

    Attributes:
        manifest: of the model.
        layers: its sites, first to last.
        graphs: its graphs by file name.
        labels: of each of its predictors.
    """

    manifest: Manifest
    layers: Sequence[LoadedLayer]
    graphs: Mapping[str, Graph]
    labels: Mapping[str, Labels]

    def stages(
        self,
        batch: Sequence[PreparedInput],
        plan: Plan,
        run: Run,
        rows: Rows | None = None,
        pooling: Vectors | None = None,
    ) -> list[Stages]:
        """Compute the stages of as many layers as the plan needs.

        Args:
            batch: sequences of one kind, or one batch.
            plan: says which stages of which layers.
            run: the computation that this is a part of.
            rows: the query rows of the last layer to compute; None for all.
            pooling: the weights of means, [P, rows]: of the last layer only the means of `output` are computed.
        """
        tensors, walk = self._inputs(batch, run), self._walk(plan.stages)
        stages: list[Stages] = []
        for layer, step in zip(self.layers, walk.steps, strict=False):
            is_last = len(stages) == len(walk.steps) - 1
            if pooling is not None and is_last:
                tensors["query"] = tensors["query"] if rows is None else tensors["query"][:, rows]
                return [*stages, {"output": layer.pool(tensors, pooling, run)}]
            before: Stages = {EMBEDDINGS: tensors["query"]} if EMBEDDINGS in step.wanted else {}
            if step.segment is not None and batch[0].memory is None:
                self._advance(step.segment, tensors, run)
            if stages and (behind := walk.steps[len(stages) - 1].behind):
                stages[-1].update({name: tensors[name] for name in behind})
            computed = self._site(layer, step, tensors, batch[0].added, rows if is_last else None, run)
            stages.append(before | computed if before else computed)
        if walk.end is not None:
            self._advance(walk.end, tensors, run)
            stages[-1].update({name: tensors[name] for name in walk.steps[-1].behind})
        return stages

    def project_memory(
        self, key: Vectors | None, value: Vectors | None, tokens: Tokens | None, run: Run
    ) -> tuple[Vectors, Vectors]:
        """Project a memory's key [S, Dk] and value [S, Dv], or its tokens; return k and v, [1, S, heads * width]."""
        if tokens is not None:
            front = self._run_front(self.manifest.text.memory_front.name, [tokens], run)
            keys, values = front["key"], front.get("value")
        else:
            assert key is not None
            keys, values = key[None], None if value is None else value[None]
        tensors: Tensors = {"key": keys, "value": keys if values is None else values}
        self._project(tensors, run)
        return tensors["k"], tensors["v"]

    def predict(self, predictor: str, rows: Vectors, run: Run) -> Vectors:
        """Return a predictor's probabilities, [N, labels], of rows of the output or hidden state, [N, D]."""
        graph = self.graphs[self.manifest.head.name]
        (probabilities,) = graph.run([predictor], {next(iter(graph.inputs)): rows}, run)
        return probabilities  # type: ignore[return-value] # float32

    def warm(self) -> None:
        """Run every graph once, so that no request waits for a first allocation."""
        text, run = self.manifest.text, Run()
        for front in (name for name in (text.front.name, text.memory_front.name) if name):
            self._run_front(front, [None], run)
        first = self.layers[0].about
        query = first.query_dim or 8
        widths = {"query": query, "key": first.key_dim or query, "value": first.value_dim or first.key_dim or query}
        tensors: Tensors = {name: np.ones((1, 4, width), np.float32) for name, width in widths.items()}
        self._add_positions(tensors, 4, [None])
        if first.HasField("pool"):
            self.layers[0].pool(tensors, np.ones((1, 4), np.float32), run)
        for index in range(len(self.layers) + 1):
            if index < max(1, len(self._segments)):
                self._project(tensors, run, index)
            if index < len(self.layers):
                self.layers[index].warm(tensors, run)
        if self.manifest.predictors:
            width = self.manifest.hidden_dim or self.manifest.layers[-1].output_dim
            for predictor in self.manifest.predictors:
                self.predict(predictor.name, np.zeros((1, width), np.float32), run)

    @cached_property
    def _walk(self) -> Callable[[Wanted], Walk]:
        return walks(self.manifest, self.layers, self.graphs)

    @cached_property
    def _segments(self) -> list[Segment]:
        """Every segment with all of its outputs."""
        graphs = [(self.graphs[each.graph.name], not each.rows_dependent) for each in self.manifest.segments]
        made = [make_segment(graph, list(graph.outputs), is_by_row=by_row) for graph, by_row in graphs]
        return [segment for segment in made if segment is not None]

    @cached_property
    def _reads(self) -> frozenset[str]:
        """The inputs of segments."""
        return frozenset(name for each in self._segments for name in each.inputs)

    def _inputs(self, batch: Sequence[PreparedInput], run: Run) -> Tensors:
        """Return query, key and value, as sent or from a front; and k and v of a memory, or without segments.

        Key defaults to query, value to key.
        """
        query, key, value = batch[0].query, batch[0].key, batch[0].value
        if len(batch) > 1:
            query, key, value = [_joined([getattr(each, name) for each in batch]) for name in ("query", "key", "value")]
        texts = [each.tokens for each in batch]
        if texts[0] is not None:
            front = self._run_front(self.manifest.text.front.name, texts, run)
            query = front["query"]
            if key is None:
                key, value = front.get("key"), front.get("value") if value is None else value
        if batch[0].memory_tokens is not None:
            front = self._run_front(self.manifest.text.memory_front.name, [each.memory_tokens for each in batch], run)
            key, value = front["key"], front.get("value")
        assert query is not None
        key = query if key is None else key
        tensors: Tensors = {"query": query, "key": key, "value": key if value is None else value}
        if (memory := batch[0].memory) is not None:
            tensors["k"], tensors["v"] = memory.k, memory.v
        elif not self._segments:
            tensors["k"], tensors["v"] = tensors["key"], tensors["value"]
        if not self._reads.isdisjoint((POSITIONS, TYPES)):
            self._add_positions(tensors, batch[0].queries, texts if texts[0] is not None else [None] * len(query))
        return tensors

    def _add_positions(self, tensors: Tensors, length: int, texts: Sequence[Tokens | None]) -> None:
        """Add the positions and the token types of sequences, each INT64 [B, T]; of vectors all types are 0."""
        base = self.manifest.text.position_base
        zeros = np.zeros(length, np.int64)
        # Not by np.stack, which is Python of many calls.
        tensors[POSITIONS] = np.array([np.arange(base, base + length, dtype=np.int64)] * len(texts))
        tensors[TYPES] = np.array([zeros if text is None else text.types for text in texts])

    def _run_front(self, name: str, texts: Sequence[Tokens | None], run: Run) -> Stages:
        """Run a front on texts of one length, None for one token of any kind; return its outputs by name."""
        graph = self.graphs[name]
        tensors: Tensors = {"tokens": np.array([np.zeros(1, np.int64) if text is None else text.ids for text in texts])}
        if len(graph.inputs) > 1:
            self._add_positions(tensors, tensors["tokens"].shape[1], texts)
        feeds = {each: tensors[each] for each in graph.inputs}
        return dict(zip(graph.outputs, graph.run(list(graph.outputs), feeds, run), strict=True))  # type: ignore[arg-type]

    def _project(self, tensors: Tensors, run: Run, index: int = 0) -> None:
        """Run a segment with all of its outputs; in a block without segments k is the key and v the value."""
        if self._segments:
            self._advance(self._segments[index], tensors, run)
        else:
            tensors["k"], tensors["v"] = tensors["key"], tensors["value"]

    def _advance(self, segment: Segment, tensors: Tensors, run: Run) -> None:
        """Run a segment: take its inputs from the tensors, and write its outputs there."""
        feeds = {name: tensors[name] for name in segment.inputs}
        if segment.is_by_row and self.layers[0].device == "cpu":
            found = run_rows(segment.graph, segment.outputs, feeds, run)
        else:
            found = segment.graph.run(segment.outputs, feeds, run)
        tensors.update(zip(segment.tensors, found, strict=True))

    def _site(
        self, layer: LoadedLayer, step: Step, tensors: Tensors, added: Vectors | None, rows: Rows | None, run: Run
    ) -> Stages:
        """Return the stages of a site, of the rows chosen; cut to them the tensors that are read from here on."""
        if rows is not None:
            tensors.update({name: tensors[name][:, rows] for name in step.cut})
            added = None if added is None else added[:, rows]
        stages = layer.stages(tensors, added, step.wanted, step.passed, run, rows) if step.attends else {}
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


def _joined(vectors: Sequence[Vectors | None]) -> Vectors | None:
    """Join arrays along the first dimension; return None where there are none."""
    return None if vectors[0] is None else np.concatenate(vectors)  # type: ignore[arg-type] # all are there, or none
