"""One version of a model, loaded: text -> vectors -> one or more layers of attention -> predictions."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from typing import NamedTuple

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Manifest, Predictor
from attention_proto.masks import Mask
from attention_proto.stages import OF_KEYS, PROJECTED

from attention_server.domain.limits import Limits
from attention_server.domain.messages import Array, OutputSpec, Prediction, Result, Tokens, TopK
from attention_server.domain.messages import Sequence as Sent
from attention_server.errors import InvalidRequest, join_path
from attention_server.inference import validation as check
from attention_server.inference.contexts import MemoryStore
from attention_server.inference.engine import Graph, Run
from attention_server.inference.layer import LoadedLayer, Vectors
from attention_server.inference.planner import OutputPlan, Plan, answer_bytes, make_plan
from attention_server.inference.postprocess import Rows, check_rows, read_rows, shape_stage
from attention_server.inference.preprocess import HIDDEN, PreparedInput, prepare, prepare_alike, shapes
from attention_server.inference.tokenizer import TextTokenizer
from attention_server.scheduling.cost_model import CostCorrection, Costs, Size

LOOKED_AT = PROJECTED | {"scores", "output"}
PLANS = 128  # that are kept
KNOWN = 256  # shapes, for each of them
SMALL = 64  # names, rows, heads and letters of a plan that is kept
MEANS = 256  # of small plans and lengths: they are the same again and again
ANY_WIDTH = 64  # of a head, where a block that takes any width is measured


class InputProfile(NamedTuple):
    """What the shapes of a sequence decide, for what is asked of it.

    Attributes:
        queries, keys: T and S.
        work: bytes of its scores, those of all layers.
        held: bytes that it holds itself.
        answered: bytes that its outputs will have.
        kind: what sequences have in common that run together for the same plan; None for one that runs alone.
        most: how many of its kind run together.
        alone: seconds that it takes by itself, before correction.
        spared: what part of that remains when there are several.
    """

    queries: int
    keys: int
    work: int
    held: int
    answered: int
    kind: Hashable | None
    most: int
    alone: float
    spared: float


@dataclass(slots=True, eq=False)
class CachedPlan:
    """What is asked for, planned, and what is known of those who asked.

    Attributes:
        plan: what has to be computed.
        correction: how far its cost is from what was measured; learned, where the same is asked for again.
        known: the sizes of sequences that were taken, by their shapes.
    """

    plan: Plan
    correction: CostCorrection = field(default_factory=CostCorrection)
    known: dict[Hashable, InputProfile] = field(default_factory=dict)


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
        costs: what its sequences cost; nothing, until it is measured.
    """

    name: str
    version: int
    manifest: Manifest
    digest: str
    device: str
    graphs: Mapping[str, Graph]
    reader: TextTokenizer | None
    memory_reader: TextTokenizer | None
    costs: Costs = field(default_factory=Costs)

    @cached_property
    def layers(self) -> list[LoadedLayer]:
        """The blocks, in the order in which they compute."""
        return [LoadedLayer(about, self.device, self.graphs) for about in self.manifest.layers]

    @cached_property
    def heads(self) -> int:
        """Of all layers together."""
        return sum(layer.heads for layer in self.manifest.layers)

    def ask(self, specs: tuple[OutputSpec, ...]) -> CachedPlan:
        """Plan what is asked for; what was asked before is planned already.

        Raises:
            InvalidRequest: it is not offered.
        """
        return self._ask(specs) if _is_small(specs) else CachedPlan(make_plan(specs, self.manifest))

    @cached_property
    def _ask(self) -> Callable[[tuple[OutputSpec, ...]], CachedPlan]:
        manifest = self.manifest  # not the model, which would then hold itself
        return lru_cache(PLANS)(lambda specs: CachedPlan(make_plan(specs, manifest)))

    def prepare(
        self, sequence: Sent, asked: CachedPlan, mask: Mask, memories: MemoryStore, limits: Limits
    ) -> list[tuple[PreparedInput, InputProfile]]:
        """Check a sequence for this model and for what is asked of it. What its shapes decide is decided once.

        Args:
            sequence: as sent; or a batch, which stays together as far as it is best run together.
            asked: what is asked of it.
            mask: the request's.
            memories: where the one is that the sequence names.
            limits: of one request.

        Raises:
            InvalidRequest: the model cannot take it.
            NotFound: it names a memory that is not kept.
            TooLarge: it needs more memory than a request may.
        """
        shape = shapes(sequence, mask)
        if shape is None:
            return [self._prepare(one, asked.plan, mask, memories, limits) for one in sequence.each()]
        sizes = asked.known.get(shape)
        if sizes is None:
            first, sizes = self._prepare(next(sequence.each()), asked.plan, mask, memories, limits)
            if len(asked.known) >= KNOWN:
                asked.known.clear()
            asked.known[shape] = sizes
            if sequence.batch == 1:
                return [(first, sizes)]
        prepared = prepare_alike(sequence, sizes.queries, sizes.keys)
        return [(part, sizes) for part in prepared.cut(1 if asked.plan.shapes else sizes.most)]

    def _prepare(
        self, sequence: Sent, plan: Plan, mask: Mask, memories: MemoryStore, limits: Limits
    ) -> tuple[PreparedInput, InputProfile]:
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
        if plan.predictions_field and self._predicts_by_word and prepared.tokens is None:
            raise InvalidRequest(
                "this model predicts from the rows of certain words, so predictions need text",
                field=plan.predictions_field,
            )
        return prepared, self._sizes(prepared, plan)

    def _sizes(self, prepared: PreparedInput, plan: Plan) -> InputProfile:
        queries, keys = prepared.queries, prepared.keys
        projected = queries + (0 if prepared.memory else keys)
        size = Size(projected, queries * keys, len(plan.stages) / len(self.layers))
        answered = 0
        for form in plan.forms:
            layer = self.layers[form.layer]
            answered += answer_bytes(form, layer.about, layer.widths(*prepared.input_widths()), queries, keys)
        most, spared = self.costs.together(max(queries, keys))
        kind = self._kind(prepared, plan) if most > 1 else None
        most = most if kind is not None else 1
        work = self.heads * queries * keys * 4
        return InputProfile(queries, keys, work, prepared.size, answered, kind, most, self.costs.of(size), spared)

    def _kind(self, prepared: PreparedInput, plan: Plan) -> Hashable | None:
        if prepared.memory or (plan.predictions and self._predicts_by_word):  # of each sequence other rows are computed
            return None
        sources = (prepared.query, prepared.key, prepared.value, prepared.tokens, prepared.memory_tokens)
        shapes = tuple(None if x is None else x.shape[1:] if isinstance(x, np.ndarray) else () for x in sources)
        mask = None if prepared.added is None else (prepared.added.shape, prepared.added.tobytes())
        return prepared.queries, prepared.keys, shapes, mask

    def answer(self, batch: Sequence[PreparedInput], plan: Plan, run: Run) -> Callable[[], list[Result]]:
        """Compute what the plan asks for, of one sequence, or of several of one kind together.

        Returns:
            What gives the results, one for each of `batch`. What is sent as it was computed is put together there: in
            the middle of computations, which leave nothing of it in the processor's caches, that would take twice as
            long.

        Raises:
            InvalidRequest: FP16 was asked for and cannot hold an answer; or what was sent overflows. Here, or there.
            Cancelled: the run was ended meanwhile.
        """
        if not plan.shapes:
            stages = self._stages(batch, plan, None, None, run)
            return partial(_whole, batch, plan, stages)
        if self._pools(batch[0], plan):
            pooled = self._pooled(batch, plan, run)
            return lambda: pooled
        computed = self._computed_rows(batch[0], plan)
        stages = self._stages(batch, plan, computed, None, run)
        _check_overflow(batch, plan, stages)
        results = [
            self._result(each, plan, [{name: stage[i] for name, stage in of.items()} for of in stages], computed, run)
            for i, each in enumerate(batch)
        ]
        return lambda: results

    def remember(
        self, key: Vectors | None, value: Vectors | None, tokens: Tokens | None, run: Run
    ) -> tuple[Vectors, Vectors]:
        """Project what a memory is made of, key and value or tokens; return k and v, [1, S, heads * width]."""
        if tokens is not None:
            front = self._read(self.manifest.text.memory_front.name, [tokens], run)
            keys, values = front["key"], front.get("value")
        else:
            assert key is not None
            keys, values = key[None], None if value is None else value[None]
        return self.layers[0].project(keys, keys if values is None else values, run)

    def warm(self) -> None:
        """Run what runs for a request once, so that no caller waits for a first allocation."""
        for layer in self.layers:
            layer.warm()
        text = self.manifest.text
        run = Run()
        for front in (name for name in (text.front.name, text.memory_front.name) if name):
            self._run(front, list(self.graphs[front].outputs), {"tokens": np.zeros((1, 1), np.int64)}, run)
        if self.manifest.predictors:
            head, rows = self.manifest.head.name, np.zeros((1, self.manifest.layers[-1].output_dim), np.float32)
            self._run(head, list(self.graphs[head].outputs), {"output": rows}, run)

    @cached_property
    def _predicts_by_word(self) -> bool:
        return any(predictor.rows == Predictor.ROWS_TOKENS for predictor in self.manifest.predictors)

    def _computed_rows(self, prepared: PreparedInput, plan: Plan) -> Rows | None:
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

    def _pools(self, prepared: PreparedInput, plan: Plan) -> bool:
        """Return whether the last layer's rows are averaged without being computed."""
        if not plan.pools or prepared.added is not None or prepared.memory:
            return False
        return self.layers[len(plan.stages) - 1].pools(prepared.queries, prepared.keys)

    def _pooled(self, batch: Sequence[PreparedInput], plan: Plan, run: Run) -> list[Result]:
        """Answer those of whose last layer only means are asked for."""
        last = len(plan.stages) - 1
        forms = [form for form in plan.forms if form.layer == last]
        specs = tuple([form.spec for form in forms])
        rows, pool = (_known_means if _is_small(specs) else _means)(specs, batch[0].queries)
        stages = self._stages(batch, plan, rows, pool, run)
        _check_overflow(batch, plan, stages)
        results = []
        for i, each in enumerate(batch):
            of_last = {
                form.name: shape_stage(stages[-1]["output"][i, place, None], None, form.spec, None, form.field)
                for place, form in enumerate(forms)
            }
            outputs = {
                form.name: of_last[form.name]
                if form.name in of_last
                else _output(form, {name: stage[i] for name, stage in stages[form.layer].items()}, each, None)
                for form in plan.forms
            }
            results.append(_told(each, outputs))
        return results

    def _stages(
        self, batch: Sequence[PreparedInput], plan: Plan, rows: Rows | None, pool: Vectors | None, run: Run
    ) -> list[dict[str, Vectors]]:
        """Compute the stages of as many layers as are needed; of the last one the rows that are, or their means."""
        query, key, value = self._vectors(batch, run)
        memory, added = batch[0].memory, batch[0].added
        stages: list[dict[str, Vectors]] = []
        for layer, wanted in zip(self.layers, plan.stages, strict=False):
            if stages:
                query = key = value = self.layers[len(stages) - 1].after(query, stages[-1]["output"], run)
            is_last = len(stages) == len(plan.stages) - 1
            if rows is not None and is_last:
                query, added = query[:, rows], None if added is None else added[:, rows]
            if pool is not None and is_last:
                stages.append({"output": layer.pool(query, key, value, pool, run)})
            else:
                k, v = (memory.k, memory.v) if memory else layer.project(key, value, run)
                stages.append(layer.stages(query, k, v, added, wanted, run))
        return stages

    def _vectors(self, batch: Sequence[PreparedInput], run: Run) -> tuple[Vectors, Vectors, Vectors]:
        """Return query, key and value: what was sent, what a front makes of tokens, or what stands in for them."""
        query, key, value = batch[0].query, batch[0].key, batch[0].value
        if len(batch) > 1:
            query, key, value = [_joined([getattr(each, name) for each in batch]) for name in ("query", "key", "value")]
        if batch[0].tokens is not None:
            front = self._read(self.manifest.text.front.name, [each.tokens for each in batch], run)
            query = front["query"]
            if key is None:
                key, value = front.get("key"), front.get("value") if value is None else value
        if batch[0].memory_tokens is not None:
            front = self._read(self.manifest.text.memory_front.name, [each.memory_tokens for each in batch], run)
            key, value = front["key"], front.get("value")
        assert query is not None
        key = query if key is None else key
        return query, key, key if value is None else value

    def _read(self, front: str, texts: Sequence[Tokens | None], run: Run) -> dict[str, Vectors]:
        names = list(self.graphs[front].outputs)
        ids = np.stack([tokens.ids for tokens in texts if tokens is not None])
        return dict(zip(names, self._run(front, names, {"tokens": ids}, run), strict=True))

    def _result(
        self, prepared: PreparedInput, plan: Plan, stages: list[dict[str, Vectors]], computed: Rows | None, run: Run
    ) -> Result:
        outputs = {}
        for form in plan.forms:
            of_some = form.layer == len(stages) - 1 and form.spec.name not in OF_KEYS
            outputs[form.name] = _output(form, stages[form.layer], prepared, computed if of_some else None)
        predictions = (
            tuple(self._predictions(stages[-1]["output"], prepared, computed, run)) if plan.predictions else None
        )
        return _told(prepared, outputs, predictions)

    def _predictions(
        self, output: Vectors, prepared: PreparedInput, computed: Rows | None, run: Run
    ) -> Iterator[Prediction]:
        """Read each predictor's most probable label from each of its rows; of `output` some may be computed."""
        for predictor in self.manifest.predictors:
            of_mean = predictor.rows == Predictor.ROWS_MEAN
            rows = _rows(predictor, prepared)
            if not len(rows):
                continue
            read = output.mean(0, keepdims=True) if of_mean else output[_places(rows, computed)]
            (probabilities,) = self._run(self.manifest.head.name, [predictor.name], {"output": read}, run)
            for row, chances in zip([None] if of_mean else rows.tolist(), probabilities, strict=True):
                best = int(chances.argmax())
                yield Prediction(predictor.name, predictor.labels[best], float(chances[best]), row)

    def _run(self, name: str, outputs: Sequence[str], feeds: Mapping[str, Array], run: Run) -> list[Vectors]:
        return self.graphs[name].run(outputs, feeds, run)  # type: ignore[return-value] # all graphs give float32


def _is_small(specs: tuple[OutputSpec, ...]) -> bool:
    """Return whether what is asked for is worth keeping: callers choose it, and it may be long."""
    if len(specs) > SMALL:
        return False
    for spec in specs:  # a generator takes longer than what it looks at
        if len(spec.rows) + len(spec.heads) + len(spec.alias) + sum(map(len, spec.layers)) > SMALL:
            return False
    return True


def _whole(batch: Sequence[PreparedInput], plan: Plan, stages: list[dict[str, Vectors]]) -> list[Result]:
    """Return the results of what is sent as it was computed."""
    _check_overflow(batch, plan, stages)
    results, begin = [], 0
    for each in batch:
        end = begin + each.batch
        place = begin if each.batch == 1 else slice(begin, end)
        results.append(_told(each, {form.name: stages[form.layer][form.spec.name][place] for form in plan.forms}))
        begin = end
    return results


def _told(
    prepared: PreparedInput, outputs: dict[str, Array | TopK], predictions: tuple[Prediction, ...] | None = None
) -> Result:
    memory_tokens = prepared.memory.tokens if prepared.memory else prepared.memory_tokens
    return Result(outputs, prepared.tokens, memory_tokens, predictions, prepared.batch)


def _check_overflow(batch: Sequence[PreparedInput], plan: Plan, stages: list[dict[str, Vectors]]) -> None:
    """Check what was computed; heads and weights need no look of their own: what overflows in them shows in the output.

    Raises:
        InvalidRequest: something overflowed.
    """
    for wanted, of in zip(plan.stages, stages, strict=True):
        for name in wanted & LOOKED_AT:
            check.no_overflow(of[name], batch[0].path)


def _joined(vectors: Sequence[Vectors | None]) -> Vectors | None:
    """Join along the first dimension; None of none."""
    return None if vectors[0] is None else np.concatenate(vectors)  # type: ignore[arg-type] # all are there, or none


def _output(
    form: OutputPlan, stages: Mapping[str, Vectors], prepared: PreparedInput, computed: Rows | None
) -> Array | TopK:
    """Return one output; of its layer's stages all rows are there, or those that were computed."""
    spec = form.spec
    rows = read_rows(spec, *prepared.rows(spec.name))
    hidden = None
    if spec.top_k and prepared.added is not None:
        hidden = (prepared.added if rows is None else prepared.added[:, rows]) == HIDDEN
    return shape_stage(stages[spec.name], _places(rows, computed), spec, hidden, form.field)


def _means(specs: tuple[OutputSpec, ...], queries: int) -> tuple[Rows | None, Vectors]:
    """Return which rows pooled outputs are made of, ascending, and what each takes of each, [P, rows]; None for all."""
    read = [read_rows(spec, queries, None) for spec in specs]
    some = [rows for rows in read if rows is not None]
    computed = np.unique(np.concatenate(some)) if len(some) == len(read) else None
    pool = np.zeros((len(specs), queries if computed is None else len(computed)), np.float32)
    for takes, rows in zip(pool, read, strict=True):
        places = _places(rows, computed)
        takes[slice(None) if places is None else places] = 1 / (queries if rows is None else len(rows))
    pool.flags.writeable = False
    return computed, pool


_known_means = lru_cache(MEANS)(_means)


def _places(rows: Rows | None, computed: Rows | None) -> Rows | None:
    """Return where rows are among those computed, which are all where there is None."""
    return rows if rows is None or computed is None else np.searchsorted(computed, rows)


def _rows(predictor: Predictor, prepared: PreparedInput) -> Rows:
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
    between = [file for layer in manifest.layers for file in (layer.project, layer.pool, layer.after)]
    text = manifest.text
    return [file.name for file in (*attend, *between, text.front, text.memory_front, manifest.head) if file.name]


class CalibrationInputs:
    """Sequences that a model takes, drawn to measure it; see `costs.measure`."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._plain = make_plan([OutputSpec("output")], model.manifest)
        self._weights = make_plan([OutputSpec("output"), OutputSpec("weights")], model.manifest)
        self._random = np.random.default_rng(0)
        about = model.layers[0].about
        query = about.query_dim or ANY_WIDTH * about.heads
        key = about.key_dim or query // about.heads * about.key_value_heads
        self._widths = (query, key, about.value_dim or key)

    def draw(self, length: int, count: int, *, masked: bool = False) -> list[PreparedInput]:
        added = np.triu(np.full((1, length, length), HIDDEN, np.float32), 1) if masked else None
        return [PreparedInput(*self._vectors(length), None, None, length, length, added) for _ in range(count)]

    def run(self, sequences: Sequence[PreparedInput]) -> object:
        return self._model.answer(sequences, self._plain, Run())()

    def is_sound(self, length: int, count: int) -> bool:
        return all(
            self._are_same(self.draw(length, count, masked=masked), plan)
            for plan in (self._plain, self._weights)
            for masked in (False, True)
        )

    def _vectors(self, length: int) -> tuple[Vectors, Vectors, Vectors]:
        query, key, value = (self._random.standard_normal((1, length, width), np.float32) for width in self._widths)
        return query, key, value

    def _are_same(self, batch: list[PreparedInput], plan: Plan) -> bool:
        """Compare the first and the last of several: every other has a place between them."""
        together = self._model.answer(batch, plan, Run())()
        return all(
            np.array_equal(together[place].outputs[name], output)
            for place in (0, -1)
            for alone in self._model.answer([batch[place]], plan, Run())()
            for name, output in alone.outputs.items()
        )
