"""One loaded version of a model. Checking, the forward pass and results are three parts of it."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Layer, Manifest
from attention_proto.chains import kept_names, site_axes, source_chain

from attention_server.contexts.past import Past
from attention_server.domain.messages import Ablation, OutputSpec, Result, Tokens
from attention_server.errors import InvalidRequest
from attention_server.inference.engine.evictable import EvictableGraph
from attention_server.inference.engine.protocol import Graph, Run
from attention_server.inference.flash import Constants, flash_constants
from attention_server.inference.forward import Forward
from attention_server.inference.input_checker import InputChecker
from attention_server.inference.labels import Labels, read_labels
from attention_server.inference.layer import LoadedLayer, runs_in_blocks
from attention_server.inference.masks import Vectors, is_long
from attention_server.inference.peak import Peak
from attention_server.inference.plan_cache import CachedPlan, PlanCache
from attention_server.inference.planner import Plan
from attention_server.inference.postprocess import Rows
from attention_server.inference.preprocess import PreparedInput
from attention_server.inference.reductions import BY_BLOCK, Reductions
from attention_server.inference.results import (
    in_order,
    pooled_results,
    raise_first,
    results_or_errors,
    shaped_results,
    whole_results,
)
from attention_server.inference.row_blocks import MAX_WHOLE_ROWS
from attention_server.inference.row_selection import computed_rows, pooling
from attention_server.inference.sharing import Sharing
from attention_server.inference.site_changes import Changes, has_fused_output, plan_changes
from attention_server.inference.tokenizer import TextTokenizer
from attention_server.inference.validation import attends_to_itself
from attention_server.scheduling.cost_model import Costs, Size

MAX_CHANGES = 16  # forward passes with changed sites that are kept


@dataclass(frozen=True)
class LoadedModel:
    """A version that can answer. None of its parts refers to it: an unloaded version is freed at once.

    Attributes:
        name, version: of the model.
        manifest: of its folder.
        digest: SHA-256 of the manifest, and so of all files that it names.
        device: where it computes.
        file_bytes: of all its files.
        tensor_bytes: of the tensors of its open graphs.
        graphs: its ONNX graphs by file name.
        reader, memory_reader: its tokenizers; None for a model without text, or without memory text.
        flash: the graphs of attention without scores, by the constants of sites.
        softmax: gives the weights of any head; None where no site has a graph without scores.
        costs: measured costs of its sequences; zero until it is measured.
    """

    name: str
    version: int
    manifest: Manifest
    digest: str
    device: str
    file_bytes: int
    tensor_bytes: int
    graphs: Mapping[str, EvictableGraph]
    reader: TextTokenizer | None
    memory_reader: TextTokenizer | None
    flash: Mapping[Constants, Graph] = field(default_factory=dict)
    softmax: Graph | None = None
    costs: Costs = field(default_factory=Costs)

    @cached_property
    def nodes(self) -> dict[str, int]:
        """The number of nodes of its graphs on each device, `cpu` or `cuda`."""
        counts: Counter[str] = Counter()
        own = [self.softmax] if self.softmax is not None else []
        for graph in (*self.graphs.values(), *self.flash.values(), *own):
            counts.update({device: sum(operators.values()) for device, operators in graph.nodes.items()})
        return dict(counts)

    @cached_property
    def layers(self) -> list[LoadedLayer]:
        """The layers, first to last."""
        manifest = self.manifest
        loaded = []
        for each, kept in zip(manifest.layers, kept_names(manifest), strict=True):
            flash = self._flash_of(each)
            softmax, axes = None if flash is None else self.softmax, site_axes(each, manifest)
            layer = LoadedLayer(each, self.device, self.graphs, axes, kept, flash=flash, softmax=softmax)
            loaded.append(layer)
        return loaded

    def plan(
        self,
        specs: tuple[OutputSpec, ...],
        ablate: tuple[Ablation, ...] = (),
        score_temperature: float | None = None,
    ) -> CachedPlan:
        """Return the plan of a request's outputs: for the same short request the same object again.

        Raises:
            InvalidRequest: the model does not offer it.
        """
        changes: Changes = ()
        if ablate or score_temperature is not None:
            changes = plan_changes(ablate, score_temperature, self.manifest)
        return self._plans.plan(specs, changes)

    def answer(self, sequences: Sequence[PreparedInput], plan: Plan, run: Run) -> Callable[[], list[Result]]:
        """Compute a plan for one sequence, one batch, or several sequences that may share a pass.

        Returns:
            A finalizer that returns one result for each of them. Outputs that are sent as computed are put together
            there: doing so between two computations, with cold processor caches, would take twice as long.

        Raises:
            InvalidRequest: a number overflows, or FP16 cannot hold it; here or in the finalizer.
            Cancelled: the run was ended meanwhile.
        """
        finalize = self.answer_each(sequences, plan, run)
        return lambda: raise_first(finalize())

    def answer_each(
        self, sequences: Sequence[PreparedInput], plan: Plan, run: Run
    ) -> Callable[[], list[Result | InvalidRequest]]:
        """Compute as `answer`, but let the finalizer return the error of a sequence of a pack in its place."""
        batches = self._sharing.batches(sequences, plan)
        if len(batches) == 1:
            return self._answer_batch(sequences, plan, run)  # type: ignore[return-value] # no error is among them
        return self._answer_pack([[sequences[place] for place in batch] for batch in batches], batches, plan, run)

    def _answer_pack(
        self, batches: Sequence[Sequence[PreparedInput]], places: Sequence[Sequence[int]], plan: Plan, run: Run
    ) -> Callable[[], list[Result | InvalidRequest]]:
        """Compute several batches in one pass; `places` are those of their sequences among the results."""
        forward = self._changed(plan.changes) if plan.changes else self._forward
        rows: list[Rows | None] = [None] * len(batches)
        if plan.shapes:
            rows = [computed_rows(batch[0], plan, self.layers, self.manifest.predictors) for batch in batches]
        stages = forward.pack_stages(batches, plan, run, rows)
        if plan.shapes:
            shape = partial(shaped_results, plan=plan, forward=forward, run=run)
            computed = [
                results_or_errors(batch, partial(shape, batch, stages=of, computed=chosen))
                for batch, of, chosen in zip(batches, stages, rows, strict=True)
            ]
            return lambda: in_order(computed, places)

        def finalize() -> list[Result | InvalidRequest]:
            whole = zip(batches, stages, strict=True)
            found = [results_or_errors(batch, partial(whole_results, batch, plan, of)) for batch, of in whole]
            return in_order(found, places)

        return finalize

    def _answer_batch(self, batch: Sequence[PreparedInput], plan: Plan, run: Run) -> Callable[[], list[Result]]:
        """Compute one sequence, or one batch; see `answer`."""
        forward = self._changed(plan.changes) if plan.changes else self._forward
        if self._is_long(batch[0], plan):
            forward = self._without_scores if self._takes_flash(batch[0], plan) else forward
            rows = computed_rows(batch[0], plan, self.layers, self.manifest.predictors)
            reductions = Reductions(plan, batch[0], self.layers, rows)
            stages = forward.stages(batch, plan, run, rows, reductions=reductions.of_layer)
            results = shaped_results(batch, plan, stages, rows, forward, run, reductions)
            return lambda: results
        if not plan.shapes:
            stages = forward.stages(batch, plan, run)
            return partial(whole_results, batch, plan, stages)
        if self._pools(batch[0], plan):
            pooled = [output for output in plan.outputs if output.layer == len(plan.stages) - 1]
            rows, weights = pooling(tuple([output.spec for output in pooled]), batch[0].queries)
            stages = forward.stages(batch, plan, run, rows, weights)
            results = pooled_results(batch, plan, stages, pooled, self.layers)
        else:
            rows = computed_rows(batch[0], plan, self.layers, self.manifest.predictors)
            stages = forward.stages(batch, plan, run, rows)
            results = shaped_results(batch, plan, stages, rows, forward, run)
        return lambda: results

    def project_memory(
        self, key: Vectors | None, value: Vectors | None, tokens: Tokens | None, run: Run
    ) -> dict[str, Vectors]:
        """Project a memory; see `Forward.project_memory`."""
        return self._forward.project_memory(key, value, tokens, run)

    def keep_prefix(self, tokens: Tokens, data_type: str, run: Run) -> Past:
        """Compute the prefix of a decoder; see `Forward.keep_prefix`."""
        return self._forward.keep_prefix(tokens, data_type, run)

    @cached_property
    def keeps_prefix(self) -> bool:
        """Whether its memories are prefixes."""
        return attends_to_itself(self.manifest)

    def memory_size(self, length: int) -> Size:
        """Return the size of the computation of a memory of so many positions."""
        chain = source_chain(self.manifest)
        if chain is None:
            return Size(2 * length, length**2) if self.keeps_prefix else Size(length, 0)
        return Size(length, length**2, len(chain.layers) / len(self.layers))

    def memory_bytes(self, length: int) -> int:
        """Return the bytes of the keys and values of a memory; 0 where a block takes them as they are sent."""
        sites = [each for each in self.layers if self.keeps_prefix or each.kept is not None] or self.layers[:1]
        return 4 * length * sum([sum(each.key_widths) for each in sites])

    def memory_peak(self, length: int) -> int:
        """Return the predicted bytes that computing a memory takes beside its keys and values."""
        chain = source_chain(self.manifest)
        sites = len(self.layers if chain is None else chain.layers)
        if chain is None and not self.keeps_prefix:
            return 0
        plan = Plan((), (frozenset[str](),) * sites, None, pools=False, shapes=False, cuts_rows=False)
        widths = [layer.widths(0, 0) for layer in self.layers[:sites]]
        return Peak(plan, self.manifest, self.layers, widths).bytes(length, length)

    def warm(self) -> None:
        """Run every graph once, so that no request waits for a first allocation."""
        self._warm(Run())

    def release(self) -> None:
        """Free memory that the engine keeps of earlier long sequences: graphs free it after a short run."""
        self._warm(Run().releasing())

    def _warm(self, run: Run) -> None:
        self._forward.warm(run)
        for (heads, _), graph in self.flash.items():
            x = np.ones((1, 4, 8 * heads), np.float32)
            graph.run(("heads",), {"q": x, "k": x, "v": x}, run)
        if self.softmax is not None:
            self.softmax.run(("weights",), {"q": np.ones((4, 8), np.float32), "k": np.ones((8, 4), np.float32)}, run)

    @cached_property
    def _plans(self) -> PlanCache:
        return PlanCache(self.manifest)

    @cached_property
    def checker(self) -> InputChecker:
        """The checker of sequences for this model."""
        return InputChecker(
            name=self.name,
            version=self.version,
            digest=self.digest,
            manifest=self.manifest,
            layers=self.layers,
            labels=self._labels,
            reader=self.reader,
            memory_reader=self.memory_reader,
            costs=self.costs,
        )

    @cached_property
    def _forward(self) -> Forward:
        return Forward(self.manifest, self.layers, self.graphs, self._labels, self.costs.shared)

    @cached_property
    def _sharing(self) -> Sharing:
        return Sharing(self.manifest, self.layers, self.costs)

    @cached_property
    def _changed(self) -> Callable[[Changes], Forward]:
        """The forward pass with sites changed; the latest ones are kept."""
        whole = self._forward

        def changed(changes: Changes) -> Forward:
            layers = [replace(layer, change=change) for layer, change in zip(whole.layers, changes, strict=True)]
            return replace(whole, layers=layers)

        return lru_cache(MAX_CHANGES)(changed)

    @cached_property
    def _without_scores(self) -> Forward:
        """The forward pass that uses the graphs without scores."""
        whole = self._forward
        return replace(whole, layers=[replace(layer, takes_flash=layer.flash is not None) for layer in whole.layers])

    def _flash_of(self, layer: Layer) -> Graph | None:
        """Return the graph of a site without scores; None where it needs these, or has M_O in its graphs alone."""
        constants = flash_constants(layer)
        return None if constants is None or has_fused_output(self.manifest) else self.flash.get(constants)

    @cached_property
    def _labels(self) -> dict[str, Labels]:
        return read_labels(self.manifest, self.reader)

    def _is_long(self, prepared: PreparedInput, plan: Plan) -> bool:
        """Return whether a site is computed in blocks of rows."""
        if is_long(prepared.added):
            return True
        if max(prepared.queries, prepared.keys) <= MAX_WHOLE_ROWS:
            return False
        layers = self.layers[: len(plan.stages)]
        return runs_in_blocks(layers, [layer.lengths(prepared) for layer in layers])

    def _takes_flash(self, prepared: PreparedInput, plan: Plan) -> bool:
        """Return whether a site of a long sequence is computed without scores."""
        if plan.changes or prepared.added is not None:
            return False
        sites = zip(self.layers, plan.stages, strict=False)
        return any(stages.isdisjoint(BY_BLOCK) and layer.is_flash(*layer.lengths(prepared)) for layer, stages in sites)

    def _pools(self, prepared: PreparedInput, plan: Plan) -> bool:
        """Return whether the graph `pool` computes the means of the last layer's rows."""
        if not plan.pools or prepared.added is not None or prepared.memory:
            return False
        return self.layers[len(plan.stages) - 1].pools(prepared.queries, prepared.keys)


def served_files(manifest: Manifest, device: str) -> list[str]:
    """Return the names of the graphs that a device needs, each once."""
    text = manifest.text
    files = [text.front, text.memory_front, *(segment.graph for segment in manifest.segments)]
    for layer in manifest.layers:
        files += [graph.file for graph in layer.attend if not graph.devices or device in graph.devices]
        files += [layer.bias, layer.pool]
    return list(dict.fromkeys(file.name for file in (*files, manifest.head) if file.name))
