"""One version of a model, loaded: text -> vectors -> one or more layers of attention -> predictions."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Manifest, Predictor
from attention_proto.masks import Mask

from attention_server import check
from attention_server.domain import Array, Limits, Prediction, Result, Sequence, Tokens, TopK, join_path
from attention_server.engine import Graph
from attention_server.errors import InvalidRequest
from attention_server.forms import Rows, check_rows, read_rows, shape_stage
from attention_server.layer import LoadedLayer, Vectors
from attention_server.memories import MemoryStore
from attention_server.plan import OF_KEYS, Form, Plan, answer_bytes
from attention_server.prepare import HIDDEN, Prepared, prepare
from attention_server.text import TextReader

PROJECTED = frozenset({"q", "k", "v"})
LOOKED_AT = PROJECTED | {"scores", "output"}


@dataclass(frozen=True)
class LoadedModel:
    """A version that can answer.

    Attributes:
        name, version: which.
        manifest: what its folder says.
        digest: the manifest's SHA-256, and so of all its files.
        device: where it computes.
        graphs: its ONNX graphs by file name.
        reader, memory_reader: its tokenizers; None for a model that reads no text, or no memory text.
    """

    name: str
    version: int
    manifest: Manifest
    digest: str
    device: str
    graphs: Mapping[str, Graph]
    reader: TextReader | None
    memory_reader: TextReader | None

    @cached_property
    def layers(self) -> list[LoadedLayer]:
        """The blocks, in the order in which they compute."""
        return [LoadedLayer(about, self.device, self.graphs) for about in self.manifest.layers]

    def prepare(self, sequence: Sequence, plan: Plan, mask: Mask, memories: MemoryStore, limits: Limits) -> Prepared:
        """Check a sequence for this model and for what is asked of it.

        Args:
            sequence: as sent.
            plan: what is asked.
            mask: the request's.
            memories: where the one is that the sequence names.
            limits: of one request.

        Raises:
            InvalidRequest: the model cannot take it.
            NotFound: it names a memory that is not kept.
            TooLarge: it needs more memory than a request may.
        """
        check.sources(
            sequence,
            self.manifest,
            reads_text=self.reader is not None,
            reads_memory_text=self.memory_reader is not None,
        )
        memory = None
        if sequence.memory:
            field = join_path(sequence.path, "memory")
            memory = memories.get(sequence.memory, self.name, self.version, field, self.digest)
        prepared = prepare(sequence, mask, memory, limits, self.manifest, self.reader, self.memory_reader)
        for form in plan.forms:
            check_rows(form.spec, *prepared.rows(form.spec.name), form.field)
        by_word = any(predictor.rows == Predictor.ROWS_TOKENS for predictor in self.manifest.predictors)
        if plan.predictions_field and by_word and prepared.tokens is None:
            raise InvalidRequest(
                "this model predicts from the rows of certain words, so predictions need text",
                field=plan.predictions_field,
            )
        return prepared

    def answer_bytes(self, prepared: Prepared, plan: Plan) -> int:
        """Return how many bytes the outputs will have."""
        total = 0
        for form in plan.forms:
            layer = self.layers[form.layer]
            widths = layer.widths(*prepared.input_widths())
            total += answer_bytes(form, layer.about, widths, prepared.queries, prepared.keys)
        return total

    def answer(self, prepared: Prepared, plan: Plan) -> Result:
        """Compute what the plan asks for.

        Raises:
            InvalidRequest: FP16 was asked for and cannot hold the answer.
        """
        computed = self._computed_rows(prepared, plan)
        stages = self._stages(prepared, plan, computed)
        outputs = {}
        for form in plan.forms:
            of_some = form.layer == len(stages) - 1 and form.spec.name not in OF_KEYS
            outputs[form.name] = _output(form, stages[form.layer], prepared, computed if of_some else None)
        predictions = tuple(self._predictions(stages[-1]["output"], prepared, computed)) if plan.predictions else None
        memory_tokens = prepared.memory.tokens if prepared.memory else prepared.memory_tokens
        return Result(outputs, prepared.tokens, memory_tokens, predictions)

    def remember(self, key: Vectors | None, value: Vectors | None, tokens: Tokens | None) -> tuple[Vectors, Vectors]:
        """Project what a memory is made of, key and value or tokens; return k and v, [1, S, heads * width]."""
        if tokens is not None:
            front = self._read(self.manifest.text.memory_front.name, tokens)
            key, value = front["key"], front.get("value")
        assert key is not None
        return self.layers[0].project(key, key if value is None else value)

    def warm(self) -> None:
        """Run what runs for a request once, so that no caller waits for a first allocation."""
        for layer in self.layers:
            layer.warm()
        text = self.manifest.text
        for front in (name for name in (text.front.name, text.memory_front.name) if name):
            self._run(front, self.graphs[front].outputs, {"tokens": np.zeros((1, 1), np.int64)})
        if self.manifest.predictors:
            rows = np.zeros((1, self.manifest.layers[-1].output_dim), np.float32)
            self._run(self.manifest.head.name, self.graphs[self.manifest.head.name].outputs, {"output": rows})

    def _computed_rows(self, prepared: Prepared, plan: Plan) -> Rows | None:
        """Return which query rows the last layer has to compute, ascending; None for all."""
        last = len(plan.stages) - 1
        read = [
            read_rows(form.spec, *prepared.rows(form.spec.name))
            for form in plan.forms
            if form.layer == last and form.spec.name not in OF_KEYS
        ]
        if plan.predictions:
            read += [_rows(predictor, prepared) for predictor in self.manifest.predictors]
        chosen = [rows for rows in read if rows is not None]
        if len(chosen) < len(read) or not sum(map(len, chosen)):
            return None
        rows = np.unique(np.concatenate(chosen))
        return rows if len(rows) < prepared.queries else None

    def _stages(self, prepared: Prepared, plan: Plan, rows: Rows | None) -> list[dict[str, Vectors]]:
        """Compute each layer's stages, as many layers as are needed; of the last one the rows that are."""
        query, key, value = self._vectors(prepared)
        memory, added = prepared.memory, prepared.added
        stages: list[dict[str, Vectors]] = []
        for layer, wanted in zip(self.layers, plan.stages, strict=False):
            if stages:
                query = key = value = self.layers[len(stages) - 1].after(query, stages[-1]["output"])
            k, v = (memory.k, memory.v) if memory else layer.project(key, value)
            needed = wanted if wanted <= PROJECTED else wanted | {"output"}
            if rows is not None and len(stages) == len(plan.stages) - 1:
                query, added = query[rows], None if added is None else added[:, rows]
            stages.append(layer.stages(query, k, v, added, needed))
            # Heads and weights need no look of their own: what overflows in them shows in the output.
            for name in needed & LOOKED_AT:
                check.no_overflow(stages[-1][name], prepared.path)
        return stages

    def _vectors(self, prepared: Prepared) -> tuple[Vectors, Vectors, Vectors]:
        """Return query, key and value: what was sent, what a front makes of tokens, or what stands in for them."""
        text = self.manifest.text
        query, key, value = prepared.query, prepared.key, prepared.value
        if prepared.tokens is not None:
            front = self._read(text.front.name, prepared.tokens)
            query = front["query"]
            if key is None:
                key, value = front.get("key"), front.get("value") if value is None else value
        if prepared.memory_tokens is not None:
            front = self._read(text.memory_front.name, prepared.memory_tokens)
            key, value = front["key"], front.get("value")
        assert query is not None
        key = query if key is None else key
        return query, key, key if value is None else value

    def _read(self, front: str, tokens: Tokens) -> dict[str, Vectors]:
        names = self.graphs[front].outputs
        vectors = self._run(front, names, {"tokens": tokens.ids[None]})
        return {name: each[0] for name, each in zip(names, vectors, strict=True)}

    def _predictions(self, output: Vectors, prepared: Prepared, computed: Rows | None) -> Iterator[Prediction]:
        """Read each predictor's most probable label from each of its rows; of `output` some may be computed."""
        for predictor in self.manifest.predictors:
            of_mean = predictor.rows == Predictor.ROWS_MEAN
            rows = _rows(predictor, prepared)
            if not len(rows):
                continue
            read = output.mean(0, keepdims=True) if of_mean else output[_places(rows, computed)]
            (probabilities,) = self._run(self.manifest.head.name, (predictor.name,), {"output": read})
            for row, chances in zip([None] if of_mean else rows.tolist(), probabilities, strict=True):
                best = int(chances.argmax())
                yield Prediction(predictor.name, predictor.labels[best], float(chances[best]), row)

    def _run(self, name: str, outputs: Iterable[str], feeds: Mapping[str, Array]) -> list[Vectors]:
        return self.graphs[name].run(list(outputs), feeds)  # type: ignore[return-value] # all graphs give float32


def _output(form: Form, stages: Mapping[str, Vectors], prepared: Prepared, computed: Rows | None) -> Array | TopK:
    """Return one output; of its layer's stages all rows are there, or those that were computed."""
    spec = form.spec
    rows = read_rows(spec, *prepared.rows(spec.name))
    hidden = None
    if spec.top_k and prepared.added is not None:
        hidden = (prepared.added if rows is None else prepared.added[:, rows]) == HIDDEN
    return shape_stage(stages[spec.name], _places(rows, computed), spec, hidden, form.field)


def _places(rows: Rows | None, computed: Rows | None) -> Rows | None:
    """Return where rows are among those computed, which are all where there is None."""
    return rows if rows is None or computed is None else np.searchsorted(computed, rows)


def _rows(predictor: Predictor, prepared: Prepared) -> Rows:
    """Return the rows that a predictor reads, or means over."""
    match predictor.rows:
        case Predictor.ROWS_FIRST:
            return np.array([0])
        case Predictor.ROWS_LAST:
            return np.array([prepared.queries - 1])
        case Predictor.ROWS_TOKENS:
            words = prepared.tokens.vocabulary if prepared.tokens else ()  # of vectors nobody knows the words
            return np.array([row for row, token in enumerate(words) if token in predictor.tokens], np.intp)
        case _:
            return np.arange(prepared.queries)


def served_files(manifest: Manifest, device: str) -> list[str]:
    """Return the graphs that a device needs."""
    attend = [
        graph.file
        for layer in manifest.layers
        for graph in layer.attend
        if not graph.devices or device in graph.devices
    ]
    between = [file for layer in manifest.layers for file in (layer.project, layer.after)]
    text = manifest.text
    return [file.name for file in (*attend, *between, text.front, text.memory_front, manifest.head) if file.name]
