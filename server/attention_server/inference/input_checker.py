"""The checking of a sequence for one model and plan, and its profile. Nothing is computed here."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from attention_proto.attention.v1.attention_pb2 import Manifest, Predictor
from attention_proto.chains import CROSS, OF_SOURCE, SiteAxes, lengths_by_axes
from attention_proto.masks import Mask
from attention_proto.stages import PREDICTIONS

from attention_server.contexts.memory import Memory
from attention_server.contexts.store import HeldMemories
from attention_server.domain.limits import Limits
from attention_server.domain.messages import OutputSpec
from attention_server.domain.messages import Sequence as Sent
from attention_server.errors import InvalidRequest, join_path
from attention_server.inference import validation as check
from attention_server.inference.input_profile import InputProfile
from attention_server.inference.key_spans import check_spans
from attention_server.inference.labels import Labels
from attention_server.inference.layer import LoadedLayer
from attention_server.inference.masks import LongMask
from attention_server.inference.peak import Peak, largest_that
from attention_server.inference.plan_cache import CachedPlan
from attention_server.inference.planner import OutputPlan, Plan, answer_bytes, head_numbers, stage_bytes
from attention_server.inference.postprocess import check_rows
from attention_server.inference.prediction_plan import PredictionPlan, candidate_bytes
from attention_server.inference.preprocess import PreparedInput, prepare, prepare_alike, shapes
from attention_server.inference.row_blocks import BLOCK_BYTES, MAX_WHOLE_ROWS
from attention_server.inference.row_selection import computed_rows, unmasked_rows
from attention_server.inference.sharing import ALONE, Sharing
from attention_server.inference.site_changes import NO_CHANGE
from attention_server.inference.tokenizer import TextTokenizer
from attention_server.scheduling.cost_model import Costs, Size

MAX_PROFILES = 256  # kept for each plan


@dataclass(frozen=True)
class InputChecker:
    """Checks sequences for one model.

    Attributes:
        name, version, digest: of the model; a memory must be of the same.
        manifest: of the model.
        layers: its layers.
        labels: of each of its predictors.
        reader, memory_reader: its tokenizers; None for a model without text, or without memory text.
        costs: measured costs of its sequences.
    """

    name: str
    version: int
    digest: str
    manifest: Manifest
    layers: Sequence[LoadedLayer]
    labels: Mapping[str, Labels]
    reader: TextTokenizer | None
    memory_reader: TextTokenizer | None
    costs: Costs

    def prepare(
        self, sequence: Sent, cached: CachedPlan, mask: Mask, memories: HeldMemories, limits: Limits
    ) -> list[tuple[PreparedInput, InputProfile]]:
        """Check a sequence or a batch, and split a batch into the largest batches that run well.

        The rules that depend on shapes alone are applied to the first sequence of its shapes.

        Args:
            sequence: as sent.
            cached: the plan.
            mask: the request's.
            memories: looks up the sequence's memory, and holds it.
            limits: of one request.

        Raises:
            InvalidRequest: the model cannot take it.
            NotFound: it names a memory that is not kept.
            TooLarge: it needs more memory than a request may.
        """
        shape = shapes(sequence, mask)
        if shape is None:
            return [self._prepare(one, cached.plan, mask, memories, limits) for one in sequence.each()]
        profile = cached.profiles.get(shape)
        if profile is None:
            first, profile = self._prepare(next(sequence.each()), cached.plan, mask, memories, limits)
            if len(cached.profiles) >= MAX_PROFILES:
                cached.profiles.clear()
            cached.profiles[shape] = profile
            if sequence.batch == 1:
                return [(first, profile)]
        prepared = prepare_alike(sequence, profile.queries, profile.keys)
        return [(part, profile) for part in prepared.cut(1 if cached.plan.shapes else profile.company.max_batch)]

    @cached_property
    def _heads(self) -> tuple[tuple[SiteAxes, int], ...]:
        """The heads of all sites together, by the sequences of their queries and keys."""
        heads: Counter[SiteAxes] = Counter()
        for layer in self.layers:
            heads[layer.axes] += layer.about.heads
        return tuple(heads.items())

    @cached_property
    def _predicts_by_word(self) -> bool:
        """Whether a predictor reads the rows of certain tokens, which only a text has."""
        return any(predictor.rows == Predictor.ROWS_TOKENS for predictor in self.manifest.predictors)

    def _prepare(
        self, sequence: Sent, plan: Plan, mask: Mask, memories: HeldMemories, limits: Limits
    ) -> tuple[PreparedInput, InputProfile]:
        check.sources(
            sequence,
            self.manifest,
            reads_text=self.reader is not None,
            reads_memory_text=self.memory_reader is not None,
        )
        if self._sources and sequence.query is None and sequence.text is None and sequence.token_ids is None:
            sequence = sequence._replace(text="")  # the start token alone
        if sequence.extend and plan.changes:
            reason = "keeps a sequence as it is without heads switched off or a temperature; leave it out"
            raise InvalidRequest(reason, field=join_path(sequence.path, "extend"))
        memory = None
        if sequence.memory:
            self._check_reads_no_source(plan, sequence)
            field = join_path(sequence.path, "memory")
            memory = memories.get(sequence.memory, self.name, self.version, field, self.digest)
            self._check_kept_unchanged(plan, memory)
        prepared = prepare(sequence, mask, memory, limits, self.manifest, self.reader, self.memory_reader)
        if prepared.continuation is not None:
            memories.close_at_end(prepared.continuation)
        for output in plan.outputs:
            check_rows(output.spec, *unmasked_rows(output, self.layers, prepared), output.field)
            check_spans(output, self.layers[output.layer], prepared, sequence)
            if output.spec.fold == "rollout":
                self._check_rolls_out(output, prepared)
        if plan.predictions is not None and plan.predictions.field:
            self._check_predictions(plan.predictions, prepared)
        profile = self._profile(prepared, plan, limits.slots)
        queries, keys = profile.queries, profile.keys
        limits.check_peak(
            profile.stage_bytes,
            queries,
            keys,
            lambda: self._peak(prepared, plan, limits.slots).fitting(queries, keys, limits.scores_bytes),
            sequence.path,
        )
        limits.check_head(profile.head_bytes, sequence.path)
        return prepared, profile

    @cached_property
    def _sources(self) -> int:
        """The number of sites of the source; 0 in a model of one chain."""
        return sum(layer.axes == OF_SOURCE for layer in self.layers)

    def _check_reads_no_source(self, plan: Plan, sequence: Sent) -> None:
        """Check that no output is of a site of the source, of which a memory keeps nothing but keys and values."""
        for output in plan.outputs:
            if min(output.layers) < self._sources:
                name = self.layers[min(output.layers)].about.name
                raise InvalidRequest(
                    f"{output.spec.name} of layer {name} is computed from the source, of which a memory keeps the "
                    "keys and values of cross sites alone; give memory_text",
                    field=join_path(sequence.path, "memory"),
                )

    def _check_kept_unchanged(self, plan: Plan, memory: Memory) -> None:
        """Check that a request changes no site of which a memory keeps results: these were computed without it."""
        kept = plan.changes if memory.prefix_length else plan.changes[: self._sources]
        if any(change != NO_CHANGE for change in kept):
            field = "ablate" if any(change.ablated for change in kept) else "score_temperature"
            raise InvalidRequest(
                "changes sites of which the memory keeps keys and values; send the text that it was made of",
                field=field,
            )

    def _check_rolls_out(self, output: OutputPlan, prepared: PreparedInput) -> None:
        """Check that the layers of a rollout attend to the whole sequence of their queries, and to no other."""
        field = join_path(output.field, "fold")
        axes = self.layers[output.layer].axes
        if prepared.first and axes != OF_SOURCE:
            raise InvalidRequest("rollout needs the rows of the whole text; send it without a kept prefix", field=field)
        if axes == CROSS and (prepared.key is not None or prepared.memory is not None):
            raise InvalidRequest("rollout is of self-attention; leave key and memory out", field=field)

    def _check_predictions(self, plan: PredictionPlan, prepared: PreparedInput) -> None:
        if self._predicts_by_word and prepared.tokens is None:
            raise InvalidRequest(
                "this model predicts from the rows of certain words, so predictions need text", field=plan.field
            )
        check_rows(OutputSpec(PREDICTIONS, rows=plan.rows), prepared.queries, None, plan.field)

    def _profile(self, prepared: PreparedInput, plan: Plan, slots: int) -> InputProfile:
        queries, keys = prepared.queries, prepared.keys
        projected = queries + (queries if prepared.first else 0 if prepared.memory else keys)
        by_axes = lengths_by_axes(queries, keys, prepared.first)
        sites = [by_axes[layer.axes] for layer in self.layers]
        scores = all_heads = largest = 0
        for axes, heads in self._heads:
            scores += heads * by_axes[axes][0] * by_axes[axes][1]
            all_heads += heads
        stages = stage_bytes(plan, self.manifest, sites)
        answer = self._answer_bytes(prepared, plan, queries, keys)
        of_site = 4 * self._most_heads * queries * keys
        largest, peak = max(stages, of_site), 2 * of_site + stages
        is_long = False
        if max(queries, keys if self._sources else 0) > MAX_WHOLE_ROWS or of_site > BLOCK_BYTES:
            way = self._peak(prepared, plan, slots)
            largest = way.bytes(queries, keys)
            is_long = way.is_long(queries, keys)
            if is_long:
                stages, scores = 0, way.pairs(queries, keys)
                peak = max(0, largest - answer - prepared.size)  # these are counted by themselves
        run = len(plan.stages) - (self._sources if prepared.memory else 0)
        size = Size(projected, scores // all_heads, run / len(self.layers))
        company = ALONE if is_long else self._sharing.company(prepared, plan)
        head = 4 * head_numbers(plan, self.manifest, self.labels, queries)
        return InputProfile(
            queries=queries,
            keys=keys,
            work_bytes=max(4 * scores, stages),
            stage_bytes=largest,
            head_bytes=head,
            input_bytes=prepared.size + self._kept_bytes(prepared),
            answer_bytes=answer,
            peak_bytes=peak + head,
            seconds=self.costs.seconds(size),
            company=company,
        )

    def _kept_bytes(self, prepared: PreparedInput) -> int:
        """Return the bytes of the keys and values that are kept of a sequence."""
        if prepared.continuation is None or not prepared.continuation.keeps:
            return 0
        own = [each for each in self.layers if each.kept is None and each.axes != OF_SOURCE]
        return 4 * prepared.queries * sum([sum(each.key_widths) for each in own])

    def fitting_answer(self, prepared: PreparedInput, plan: Plan, most: int) -> int:
        """Return the largest number of positions of a sequence with an answer of at most so many bytes; 0 for none."""
        queries, keys = prepared.queries, prepared.keys
        own = keys == queries or prepared.first > 0  # then its keys become fewer with the queries

        def fits(length: int) -> bool:
            return self._answer_bytes(prepared, plan, length, length + keys - queries if own else keys) <= most

        return largest_that(fits, queries)

    def _answer_bytes(self, prepared: PreparedInput, plan: Plan, queries: int, keys: int) -> int:
        by_axes = lengths_by_axes(queries, keys, prepared.first)
        answer = 0
        if plan.predictions is not None:
            answer = candidate_bytes(plan.predictions, self.manifest.predictors, self.labels, queries)
        for output in plan.outputs:
            layer = self.layers[output.layer]
            widths = layer.widths(*prepared.input_widths())
            answer += answer_bytes(output, self.manifest, widths, *by_axes[layer.axes])
        return answer

    @cached_property
    def _most_heads(self) -> int:
        return max(layer.about.heads for layer in self.layers)

    def _peak(self, prepared: PreparedInput, plan: Plan, slots: int) -> Peak:
        """Return the predictor of a plan's peak for a sequence of this kind."""
        rows = computed_rows(prepared, plan, self.layers, self.manifest.predictors)
        window = 0
        if isinstance(prepared.added, LongMask):
            begin, end = prepared.added.reach(slice(None))
            window = max(1, int((end - begin).max()))
        return Peak(
            plan=plan,
            manifest=self.manifest,
            layers=self.layers,
            widths=[layer.widths(*prepared.input_widths()) for layer in self.layers[: len(plan.stages)]],
            first=prepared.first,
            rows=0 if rows is None else len(rows),
            window=window,
            is_masked=prepared.added is not None,
            slots=slots,
        )

    @cached_property
    def _sharing(self) -> Sharing:
        return Sharing(self.manifest, self.layers, self.costs)
