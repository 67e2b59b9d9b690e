"""One version of a model, loaded: text -> vectors -> k and v -> attention -> predictions."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Layer, Manifest, Predictor
from attention_proto.masks import Mask, additive
from numpy.typing import NDArray

from attention_server import check
from attention_server.domain import (
    PREDICTIONS,
    Array,
    Prediction,
    Result,
    Sequence,
    Tokens,
    join_path,
)
from attention_server.engine import Graph
from attention_server.errors import InvalidRequest, NotFound
from attention_server.forms import check_rows, shape_stage
from attention_server.plan import OF_KEYS, Plan, answer_bytes, choose_graph
from attention_server.text import TextReader

Vectors = NDArray[np.float32]
HIDDEN = np.float32(-np.inf)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A sequence that was checked and is ready to compute.

    Attributes:
        query, key, value: [T, Dq], [S, Dk], [S, Dv]; None where they come from tokens, or from each other.
        tokens, memory_tokens: the texts, read.
        queries, keys: T and S.
        added: what is added to the scores, [1 or H, T, S]; None for no mask.
        answer_bytes: what the answer will weigh.
    """

    query: Vectors | None
    key: Vectors | None
    value: Vectors | None
    tokens: Tokens | None
    memory_tokens: Tokens | None
    queries: int
    keys: int
    added: Vectors | None
    answer_bytes: int


@dataclass(frozen=True)
class LoadedModel:
    """A version that can answer.

    Attributes:
        name, version: which.
        manifest: what its folder says.
        device: where it computes.
        graphs: its ONNX graphs by file name.
        reader, memory_reader: its tokenizers; None for a model that reads no text, or no memory text.
    """

    name: str
    version: int
    manifest: Manifest
    device: str
    graphs: Mapping[str, Graph]
    reader: TextReader | None
    memory_reader: TextReader | None

    @property
    def layer(self) -> Layer:
        """The layer that answers."""
        return self.manifest.layers[-1]

    def prepare(self, sequence: Sequence, plan: Plan, mask: Mask) -> Prepared:
        """Check a sequence, read its texts and lay out its mask. Nothing is computed yet.

        Raises:
            InvalidRequest: the model cannot take it.
            NotFound: it names a memory that is not kept.
        """
        check.sources(
            sequence,
            self.manifest.block,
            reads_text=self.reader is not None,
            memory_apart=self.memory_reader is not None,
        )
        if sequence.memory:
            raise NotFound(f"there is no memory {sequence.memory!r}", field=join_path(sequence.path, "memory"))
        prepared = self._read(sequence)
        prepared = replace(prepared, added=self._mask(sequence, mask, prepared.queries, prepared.keys))
        self._check_plan(plan, prepared)
        widths = self._widths(prepared)
        size = answer_bytes(plan, self.layer, widths, prepared.queries, prepared.keys)
        return replace(self._finite(prepared, sequence.path), answer_bytes=size)

    def answer(self, prepared: Prepared, plan: Plan) -> Result:
        """Compute what the plan asks for.

        Raises:
            InvalidRequest: FP16 was asked for and cannot hold the answer.
        """
        stages = self._stages(prepared, plan)
        hidden = None if prepared.added is None else prepared.added == HIDDEN
        outputs = {
            name: shape_stage(stages[spec.name], spec, hidden, plan.fields[name]) for name, spec in plan.forms.items()
        }
        predictions = tuple(self._predictions(stages["output"], prepared)) if plan.predictions else None
        return Result(outputs, prepared.tokens, prepared.memory_tokens, predictions)

    def warm(self) -> None:
        """Run every graph once, so that no caller waits for a first allocation."""
        layer = self.layer
        rng = np.random.default_rng(0)
        query, key, value = (
            rng.standard_normal((4, width or 8), np.float32)
            for width in (layer.query_dim, layer.key_dim or layer.query_dim, layer.value_dim or layer.key_dim)
        )
        k, v = self._project(key, value)
        for graph in (graph for graph in layer.attend if graph.file.name in self.graphs):
            feeds = {"query": query[None], "k": k, "v": v}
            mask = {"mask": np.zeros((1, 1, 4, 4), np.float32)} if graph.mask else {}
            self._run(graph.file.name, self.graphs[graph.file.name].outputs, feeds | mask)

    def _read(self, sequence: Sequence) -> Prepared:
        """Turn what was sent into arrays and tokens, each checked."""
        path, layer = sequence.path, self.layer
        tokens = memory_tokens = None
        query = key = value = None
        if sequence.text is not None:
            assert self.reader is not None
            tokens = self.reader.read(sequence.text, join_path(path, "text"))
        else:
            assert sequence.query is not None
            query = check.vectors(sequence.query, layer.query_dim, join_path(path, "query"))
        if sequence.memory_text is not None:
            assert self.memory_reader is not None
            memory_tokens = self.memory_reader.read(sequence.memory_text, join_path(path, "memory_text"))
        elif sequence.key is not None or (query is not None and sequence.value is not None):
            key = self._key(sequence, query)
        elif query is not None:
            check.vectors(query, layer.key_dim, join_path(path, "key"))  # the query is its own memory
        if sequence.value is not None:
            value = check.vectors(sequence.value, layer.value_dim, join_path(path, "value"))
            check.same_length(key if key is not None else np.empty(len(value)), value, join_path(path, "value"))
        elif key is not None:
            check.vectors(key, layer.value_dim, join_path(path, "value"))  # the key is its own value
        queries = len(tokens.ids) if tokens is not None else len(query if query is not None else ())
        keys = len(memory_tokens.ids) if memory_tokens is not None else len(key) if key is not None else queries
        return Prepared(query, key, value, tokens, memory_tokens, queries, keys, None, 0)

    def _key(self, sequence: Sequence, query: Vectors | None) -> Vectors:
        """Return the key sent, or the query in its place when only a value was sent."""
        field = join_path(sequence.path, "key")
        sent = sequence.key if sequence.key is not None else query
        assert sent is not None
        width = self.layer.key_dim or (query.shape[1] if query is not None else 0)
        return check.vectors(sent, width, field)

    def _mask(self, sequence: Sequence, mask: Mask, queries: int, keys: int) -> Vectors | None:
        """Add up the request's mask and the sequence's own."""
        added = None
        for each, field in ((mask, "mask"), (sequence.mask, join_path(sequence.path, "mask"))):
            if each.is_open:
                continue
            check.mask(each, self.layer, queries, keys, field)
            one = additive(each, queries, keys)
            added = one if added is None else added + one
        return added

    def _finite(self, prepared: Prepared, path: str) -> Prepared:
        """Refuse numbers that are none where they matter; zero them where they do not."""
        added = prepared.added
        attended: NDArray[np.bool_] | None = None
        attending: NDArray[np.bool_] | None = None
        if added is not None:
            attended = np.any(added > HIDDEN, axis=(0, 1))
            attending = np.any(added > HIDDEN, axis=(0, 2))
            if prepared.key is None and prepared.memory_tokens is None:
                attending = attending | attended  # the query is the memory too

        def checked(array: Vectors | None, matters: NDArray[np.bool_] | None, name: str) -> Vectors | None:
            return None if array is None else check.finite(array, matters, join_path(path, name))

        return replace(
            prepared,
            query=checked(prepared.query, attending, "query"),
            key=checked(prepared.key, attended, "key"),
            value=checked(prepared.value, attended, "value"),
        )

    def _check_plan(self, plan: Plan, prepared: Prepared) -> None:
        for name, spec in plan.forms.items():
            check_rows(spec, prepared.keys if spec.name in OF_KEYS else prepared.queries, plan.fields[name])
        by_token = any(predictor.rows == Predictor.ROWS_TOKENS for predictor in self.manifest.predictors)
        if PREDICTIONS in plan.fields and by_token and prepared.tokens is None:
            raise InvalidRequest(
                "this model predicts from the rows of certain words, so predictions need text; "
                "name the outputs that you want without them",
                field=plan.fields[PREDICTIONS],
            )

    def _widths(self, prepared: Prepared) -> tuple[int, int, int]:
        """Return Dh, Dv and D, which a block that takes any width has from its inputs."""
        layer = self.layer
        query = prepared.query.shape[1] if prepared.query is not None else 0
        key = prepared.key if prepared.key is not None else prepared.query
        value = prepared.value if prepared.value is not None else key
        head = layer.head_dim or query // layer.heads
        value_head = layer.value_head_dim or (value.shape[1] // layer.key_value_heads if value is not None else 0)
        return head, value_head, layer.output_dim or layer.heads * value_head

    def _stages(self, prepared: Prepared, plan: Plan) -> dict[str, Vectors]:
        """Compute the stages asked for, each [H, length, width], and the output, [T, D]."""
        query, key, value = self._vectors(prepared)
        k, v = self._project(key, value)
        graph = choose_graph(self.layer, self.device, weights=plan.weights, mask=prepared.added is not None)
        feeds: dict[str, Array] = {"query": query[None], "k": k, "v": v}
        if graph.mask:
            added = prepared.added
            feeds["mask"] = np.zeros((1, 1, len(query), k.shape[1]), np.float32) if added is None else added[None]
        offered = self.graphs[graph.file.name].outputs
        needed = {self._name_of(stage, offered) for stage in plan.stages} | (
            {"q"} if "scores" in plan.stages else set()
        )
        wanted = [name for name in offered if name in needed]
        found = dict(zip(wanted, self._run(graph.file.name, wanted, feeds), strict=True)) if wanted else {}
        return self._unpack(found, query, k, v, plan)

    def _name_of(self, stage: str, offered: Collection[str]) -> str:
        """Return the graph's output that holds a stage: without M_O, the heads are the output."""
        return "output" if stage == "heads" and "heads" not in offered else stage

    def _unpack(
        self, found: dict[str, Vectors], query: Vectors, k: Vectors, v: Vectors, plan: Plan
    ) -> dict[str, Vectors]:
        """Turn [1, length, heads * width] into [heads, length, width]: views, until they are written to the wire."""
        layer = self.layer
        q = _split(found["q"][0] if "q" in found else query, layer.heads)
        stages = {"q": q, "k": _split(k[0], layer.key_value_heads), "v": _split(v[0], layer.key_value_heads)}
        if "output" in found:
            stages["output"] = found["output"][0]
        if "heads" in plan.stages:
            stages["heads"] = _split(found[self._name_of("heads", list(found))][0], layer.heads)
        if "weights" in found:
            stages["weights"] = found["weights"][0]
        if "scores" in plan.stages:
            stages["scores"] = self._scores(q, stages["k"])
        return stages

    def _scores(self, q: Vectors, k: Vectors) -> Vectors:
        """Compute q.k * scale, [H, T, S]; no graph gives it, for it is asked for seldom and costs a pass over T * S."""
        layer = self.layer
        shared = np.repeat(k, layer.heads // layer.key_value_heads, 0) if layer.key_value_heads < layer.heads else k
        scores = (q @ shared.transpose(0, 2, 1)) * np.float32(layer.scale or q.shape[-1] ** -0.5)
        if layer.softcap:
            scores = np.float32(layer.softcap) * np.tanh(scores / np.float32(layer.softcap))
        return scores

    def _vectors(self, prepared: Prepared) -> tuple[Vectors, Vectors, Vectors]:
        """Return query, key and value, reading tokens through the front."""
        text = self.manifest.text
        query, key, value = prepared.query, prepared.key, prepared.value
        if prepared.tokens is not None:
            front = self._run_front(text.front.name, prepared.tokens)
            query = front.pop("query")
            if key is None:
                key, value = front.get("key"), value if value is not None else front.get("value")
        if prepared.memory_tokens is not None:
            front = self._run_front(text.memory_front.name, prepared.memory_tokens)
            key, value = front["key"], front.get("value")
        assert query is not None
        key = query if key is None else key
        return query, key, key if value is None else value

    def _run_front(self, name: str, tokens: Tokens) -> dict[str, Vectors]:
        outputs = self.graphs[name].outputs
        found = self._run(name, outputs, {"tokens": tokens.ids[None]})
        return {output: vectors[0] for output, vectors in zip(outputs, found, strict=True)}

    def _project(self, key: Vectors, value: Vectors) -> tuple[Vectors, Vectors]:
        """Return k and v, [1, S, heads * width]."""
        if not self.layer.HasField("project"):
            return key[None], value[None]
        k, v = self._run(self.layer.project.name, ("k", "v"), {"key": key[None], "value": value[None]})
        return k, v

    def _predictions(self, output: Vectors, prepared: Prepared) -> Iterator[Prediction]:
        """Read each predictor's most probable label from each of its rows."""
        for predictor in self.manifest.predictors:
            rows = _rows(predictor, prepared)
            if rows == []:
                continue
            read = output.mean(0, keepdims=True) if rows is None else output[rows]
            (probabilities,) = self._run(self.manifest.head.name, (predictor.name,), {"output": read})
            for row, chances in zip(rows if rows is not None else [None], probabilities, strict=True):
                best = int(chances.argmax())
                yield Prediction(predictor.name, predictor.labels[best], float(chances[best]), row)

    def _run(self, name: str, outputs: Iterable[str], feeds: Mapping[str, Array]) -> list[Vectors]:
        return self.graphs[name].run(list(outputs), feeds)  # type: ignore[return-value] # all graphs give float32


def _split(x: Vectors, heads: int) -> Vectors:
    """[length, heads * width] -> [heads, length, width], a view."""
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)


def _rows(predictor: Predictor, prepared: Prepared) -> list[int] | None:
    """Return the rows that a predictor reads; None for the mean of all."""
    match predictor.rows:
        case Predictor.ROWS_FIRST:
            return [0]
        case Predictor.ROWS_LAST:
            return [prepared.queries - 1]
        case Predictor.ROWS_MEAN:
            return None
        case Predictor.ROWS_TOKENS:
            words = prepared.tokens.vocabulary if prepared.tokens else ()  # of vectors nobody knows the words
            return [row for row, token in enumerate(words) if token in predictor.tokens]
        case _:
            return list(range(prepared.queries))


def served_files(manifest: Manifest, device: str) -> list[str]:
    """Return the graphs that a device needs."""
    layers = manifest.layers
    attend = [graph.file for layer in layers for graph in layer.attend if not graph.devices or device in graph.devices]
    others = [manifest.text.front, manifest.text.memory_front, manifest.head, *(layer.project for layer in layers)]
    return [file.name for file in (*attend, *others) if file.name]


def reader(manifest: Manifest, folder: Path) -> TextReader | None:
    """Return the tokenizer of the query's text."""
    text = manifest.text
    if not text.front.name:
        return None
    path = folder / text.tokenizer.name
    return TextReader(path, allow_unknown=text.allow_unknown, max_tokens=text.max_tokens)


def memory_reader(manifest: Manifest, folder: Path) -> TextReader | None:
    """Return the tokenizer of the memory's text."""
    text = manifest.text
    if not text.memory_front.name:
        return None
    path = folder / (text.memory_tokenizer.name or text.tokenizer.name)
    return TextReader(path, allow_unknown=text.allow_unknown, max_tokens=text.max_memory_tokens)
