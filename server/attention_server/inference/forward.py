"""The forward pass of a model: fronts, layers one after another, and the head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Manifest

from attention_server.domain.messages import Array, Tokens
from attention_server.inference.engine.protocol import Graph, Run
from attention_server.inference.layer import LoadedLayer, Vectors
from attention_server.inference.planner import Plan
from attention_server.inference.postprocess import Rows
from attention_server.inference.preprocess import PreparedInput

Stages = dict[str, Vectors]  # of one layer, by name, each with a leading dimension B


@dataclass(frozen=True)
class Forward:
    """The forward pass of one model.

    Attributes:
        manifest: of the model.
        layers: its layers, first to last.
        graphs: its graphs by file name.
    """

    manifest: Manifest
    layers: Sequence[LoadedLayer]
    graphs: Mapping[str, Graph]

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
        query, key, value = self._inputs(batch, run)
        memory, added = batch[0].memory, batch[0].added
        stages: list[Stages] = []
        for layer, wanted in zip(self.layers, plan.stages, strict=False):
            if stages:
                query = key = value = self.layers[len(stages) - 1].after(query, stages[-1]["output"], run)
            is_last = len(stages) == len(plan.stages) - 1
            if rows is not None and is_last:
                query, added = query[:, rows], None if added is None else added[:, rows]
            if pooling is not None and is_last:
                stages.append({"output": layer.pool(query, key, value, pooling, run)})
            else:
                k, v = (memory.k, memory.v) if memory else layer.project(key, value, run)
                stages.append(layer.stages(query, k, v, added, wanted, run))
            if "embeddings" in wanted:
                stages[-1]["embeddings"] = query
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
        return self.layers[0].project(keys, keys if values is None else values, run)

    def predict(self, predictor: str, rows: Vectors, run: Run) -> Vectors:
        """Return a predictor's probabilities, [N, labels], of rows of the output, [N, D]."""
        (probabilities,) = self._run(self.manifest.head.name, [predictor], {"output": rows}, run)
        return probabilities

    def warm(self) -> None:
        """Run every graph once, so that no request waits for a first allocation."""
        for layer in self.layers:
            layer.warm()
        text = self.manifest.text
        run = Run()
        for front in (name for name in (text.front.name, text.memory_front.name) if name):
            self._run(front, list(self.graphs[front].outputs), {"tokens": np.zeros((1, 1), np.int64)}, run)
        if self.manifest.predictors:
            head, rows = self.manifest.head.name, np.zeros((1, self.manifest.layers[-1].output_dim), np.float32)
            self._run(head, list(self.graphs[head].outputs), {"output": rows}, run)

    def _inputs(self, batch: Sequence[PreparedInput], run: Run) -> tuple[Vectors, Vectors, Vectors]:
        """Return query, key and value, as sent or from a front; key defaults to query, value to key."""
        query, key, value = batch[0].query, batch[0].key, batch[0].value
        if len(batch) > 1:
            query, key, value = [_joined([getattr(each, name) for each in batch]) for name in ("query", "key", "value")]
        if batch[0].tokens is not None:
            front = self._run_front(self.manifest.text.front.name, [each.tokens for each in batch], run)
            query = front["query"]
            if key is None:
                key, value = front.get("key"), front.get("value") if value is None else value
        if batch[0].memory_tokens is not None:
            front = self._run_front(self.manifest.text.memory_front.name, [each.memory_tokens for each in batch], run)
            key, value = front["key"], front.get("value")
        assert query is not None
        key = query if key is None else key
        return query, key, key if value is None else value

    def _run_front(self, front: str, texts: Sequence[Tokens | None], run: Run) -> Stages:
        names = list(self.graphs[front].outputs)
        ids = np.stack([tokens.ids for tokens in texts if tokens is not None])
        return dict(zip(names, self._run(front, names, {"tokens": ids}, run), strict=True))

    def _run(self, name: str, outputs: Sequence[str], feeds: Mapping[str, Array], run: Run) -> list[Vectors]:
        return self.graphs[name].run(outputs, feeds, run)  # type: ignore[return-value] # all graphs give float32


def _joined(vectors: Sequence[Vectors | None]) -> Vectors | None:
    """Join arrays along the first dimension; return None where there are none."""
    return None if vectors[0] is None else np.concatenate(vectors)  # type: ignore[arg-type] # all are there, or none
