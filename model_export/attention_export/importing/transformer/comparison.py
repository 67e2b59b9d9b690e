"""Comparison of a version's folder with its source: equal at every site and layer, or refused.

The first difference is reported in the order of computation: embeddings, then for each site its weights, its `output`
and the `hidden` of its layer, then predictions. A difference is allowed up to `RTOL` of the stage's largest value, or
up to twice the largest error that the source's own float32 has had from float64 at the same site, if that is more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Layer, Parity, Predictor, Side
from attention_proto.folder import LOGITS

from attention_export.importing.transformer.cases import LENGTHS, LENGTHS_OF_LARGE, Case, comparison_cases
from attention_export.importing.transformer.reference import (
    Array,
    ModuleCall,
    Reference,
    SourceStages,
    StackStages,
)
from attention_export.importing.transformer.runner import ChainStages, SiteStages, VersionRunner
from attention_export.importing.transformer.source import Source
from attention_export.importing.transformer.structure import Mismatch, check_structure, place, site_reference

Progress = Callable[[str], None]
__all__ = ["Mismatch", "compare"]

RTOL = 2e-5  # of the largest value of a stage
WHOLE = 500_000_000  # parameters, up to which a model is loaded at once


@dataclass
class Comparison:
    """The state of a comparison: the reference, the version, and the errors found so far.

    Attributes:
        reference: the source.
        version: the folder.
        cases: the number of cases compared.
        errors: the largest of each stage.
        rounding: the largest error of the source's own float32, of each site and stage.
        limited_by_float32: the number of stages that differ by more than `RTOL`.
    """

    reference: Reference
    version: VersionRunner
    cases: int = 0
    errors: dict[str, float] = field(default_factory=dict)
    rounding: dict[tuple[str, str], float] = field(default_factory=dict)
    limited_by_float32: int = 0

    def compare_case(self, case: Case) -> None:
        """Compare all stages of a case.

        Raises:
            Mismatch: a stage differs.
        """
        exact = self.reference.exact.run(case.arguments)
        single = self.reference.single.run(case.arguments) if self.reference.is_exact else exact
        self._check_count(exact)
        for rows, lengths in case.sequences():
            found = self.version.run(case.cut(rows, lengths), masked=case.masked)
            self._compare_run(case, found, self._cut(exact, rows, lengths), self._cut(single, rows, lengths))
        self.cases += 1

    def compare_outputs(self, case: Case) -> None:
        """Compare `output` of every site that offers it with the result of the source's module.

        Raises:
            Mismatch: a site's output differs, or no module of the source gives it.
        """
        sites = [site for chain in self.version.run(case.tokens) for site in chain.sites]
        weights = [each for stack in self.reference.exact.run(case.arguments).stacks for each in stack.weights]
        layers = {i: each for i, each in enumerate(self.version.manifest.layers) if "output" in each.stages}
        paths = [self.reference.exact.module_path(layer.path) for layer in layers.values()]
        _, calls = self.reference.exact.record(case.arguments, [*self.reference.exact.matrices(), *paths])
        expected: dict[int, ModuleCall] = {}
        for (index, layer), path in zip(layers.items(), paths, strict=True):
            heads = site_reference(layer, sites[index], weights[index])
            call = _linear_behind(calls, heads) or self._module_call(calls, index, path)
            if call is None or sites[index].output is None:
                raise Mismatch(
                    layer.name, "output", f"{place(layer)}: no module of the source gives its `output` ({case.name})"
                )
            expected[index] = call
        _, calls = self.reference.single.record(case.arguments, {call.path for call in expected.values()})
        rounded = {(call.path, call.number): call.result for call in calls}
        for index, call in expected.items():
            output = sites[index].output
            assert output is not None
            self.check(layers[index], "output", case, output, call.result, rounded[call.path, call.number])

    def check(self, layer: Layer, stage: str, case: Case, found: Array, exact: Array, single: Array) -> None:
        """Compare one stage.

        Raises:
            Mismatch: it differs by more than is allowed, is not finite, or has another shape.
        """
        if found.shape != exact.shape:
            raise Mismatch(
                layer.name,
                stage,
                f"{place(layer)}: {stage} of {case.name} has the shape {list(found.shape)}, the source's has "
                f"{list(exact.shape)}",
            )
        error = _distance(found, exact)
        # Rounding differs from sequence to sequence: of a few rows it may be small by chance.
        own = max(self.rounding.get((layer.name, stage), 0.0), _distance(single, exact))
        self.rounding[layer.name, stage] = own
        allowed = RTOL * float(np.abs(exact).max())
        if not error <= max(allowed, 2 * own):  # `not <=` also catches NaN
            raise Mismatch(
                layer.name,
                stage,
                f"{place(layer)}: {stage} of {case.name} is off by {error:.3g} from the source "
                f"({self.reference.description}), whose largest value is {np.abs(exact).max():.3g}; allowed is "
                f"{max(allowed, 2 * own):.2g}",
            )
        self.limited_by_float32 += not error <= allowed
        self.errors[stage] = max(self.errors.get(stage, 0.0), error)

    def parity(self) -> Parity:
        """Return the record for the manifest."""
        return Parity(
            cases=self.cases,
            max_abs_error=self.errors,
            rtol=RTOL,
            limited_by_float32=self.limited_by_float32,
            reference=self.reference.description,
        )

    def _check_count(self, exact: SourceStages) -> None:
        for chain, stack in zip(self.version.chains, exact.stacks, strict=True):
            if len(stack.weights) != len(chain.layers):
                raise Mismatch(
                    chain.layers[min(len(stack.weights), len(chain.layers) - 1)].name,
                    "weights",
                    f"the source returns weights of {len(stack.weights)} attentions, and {len(chain.layers)} of them "
                    "were found at transformers' attention interface: an attention is computed beside it",
                )

    def _cut(self, stages: SourceStages, rows: slice, lengths: tuple[int, ...]) -> SourceStages:
        """Return the stages of some sequences of a batch, without padding: of each chain its own length."""
        logits, target = stages.logits, lengths[-1]
        if logits is not None:
            logits = logits[rows, :target] if logits.ndim == 3 else logits[rows]
        stacks = [
            StackStages(
                [state[rows, :length] for state in stack.hidden],
                [
                    each[rows, :, :length, : lengths[0] if layer.side == Side.SIDE_CROSS else length]
                    for layer, each in zip(chain.layers, stack.weights, strict=True)
                ],
            )
            for chain, stack, length in zip(self.version.chains, stages.stacks, lengths, strict=True)
        ]
        return SourceStages(stacks, logits)

    def _compare_run(self, case: Case, found: Sequence[ChainStages], exact: SourceStages, single: SourceStages) -> None:
        for chain, stages, stack, rounded in zip(self.version.chains, found, exact.stacks, single.stacks, strict=True):
            self._compare_chain(chain.layers, case, stages, stack, rounded)
        if self.version.manifest.HasField("head") and exact.logits is not None and single.logits is not None:
            self._compare_predictions(case, found[-1], exact.logits, single.logits)

    def _compare_chain(
        self, layers: Sequence[Layer], case: Case, found: ChainStages, exact: StackStages, single: StackStages
    ) -> None:
        self.check(layers[0], "embeddings", case, found.embeddings, exact.hidden[0], single.hidden[0])
        hidden = [index for index, layer in enumerate(layers) if "hidden" in layer.stages]
        for index, (layer, site) in enumerate(zip(layers, found.sites, strict=True)):
            self.check(layer, "weights", case, site.weights, exact.weights[index], single.weights[index])
            if _ends_layer(layers, index) and (ended := [each for each in hidden if each <= index]):
                # Layers are counted from the end: the last hidden state is the one that every model has.
                place = len(ended) - 1 - len(hidden)
                last = ended[-1]
                self._check_hidden(layers[last], case, found.sites[last], exact.hidden[place], single.hidden[place])

    def _check_hidden(self, layer: Layer, case: Case, site: SiteStages, exact: Array, single: Array) -> None:
        if site.hidden is None:
            raise Mismatch(layer.name, "hidden", f"{place(layer)}: its segment returns no `hidden`")
        self.check(layer, "hidden", case, site.hidden, exact, single)

    def _compare_predictions(self, case: Case, found: ChainStages, exact: Array, single: Array) -> None:
        assert found.hidden is not None
        manifest = self.version.manifest
        for predictor in manifest.predictors:
            # Where the source has logits of each row, every row is compared, whichever are predicted from.
            rows = found.hidden if exact.ndim == found.hidden.ndim else _rows(predictor, found.hidden)
            results = self.version.predictions(rows.reshape(-1, rows.shape[-1]))
            by_row = {name: result.reshape(*rows.shape[:-1], -1) for name, result in results.items()}
            if manifest.logits_dim:
                self.check(manifest.layers[-1], "logits", case, by_row[LOGITS], exact, single)
            expected, rounded = (_probabilities(logits) for logits in (exact, single))
            self.check(manifest.layers[-1], "predictions", case, by_row[predictor.name], expected, rounded)

    def _module_call(self, calls: Sequence[ModuleCall], index: int, path: str) -> ModuleCall | None:
        """Return the call of a site's own module."""
        layers = self.version.manifest.layers
        number = sum(each.path == layers[index].path for each in layers[:index])
        return next((call for call in calls if (call.path, call.number) == (path, number)), None)


def compare(source: Source, folder: Path, progress: Progress, *, whole: int = WHOLE) -> Parity:
    """Compare a version's folder with its source.

    The stages of a site lose `contributions` in the folder's manifest if its `output` is not affine in `heads`.

    Args:
        source: the checkpoint.
        folder: of the version.
        progress: called with a line for each step.
        whole: up to how many parameters the source is loaded at once, by `transformers` itself. Of a larger one
            one parameter is in memory at a time; graphs of its version stay open up to as many, and further ones are
            opened for each use; and there are fewer and shorter sequences.

    Returns:
        The record for the manifest.

    Raises:
        Mismatch: a stage differs; the first site that does is named.
        ImportFailure: the source returns no weights or hidden states.
    """
    large = sum(parameter.numel() for parameter in source.skeleton.parameters()) > whole
    reference = Reference(source.skeleton, source.value_to_run if large else source.model.state_dict().__getitem__)
    lengths = LENGTHS_OF_LARGE if large else LENGTHS
    comparison = Comparison(reference, VersionRunner(folder, kept_bytes=4 * whole))
    progress(f"comparing with {reference.description}")
    if large:
        progress(
            f"more than {whole:,} parameters: one is in memory at a time, and sequences have up to {lengths[-1]} tokens"
        )
    cases = comparison_cases(comparison.version, reference.exact, lengths, source.start_token)
    for case in cases:
        progress(f"comparing {case.name}")
        comparison.compare_case(case)
    plain = next(case for case in cases if case.lengths is None and case.tokens[-1].tokens.shape[1] > 2)
    comparison.compare_outputs(plain)
    progress("comparing the graphs of sites, and rows of segments alone with rows together")
    for chain, stages in zip(comparison.version.chains, comparison.version.run(plain.tokens), strict=True):
        check_structure(comparison.version, chain, stages)
    return comparison.parity()


def _ends_layer(layers: Sequence[Layer], index: int) -> bool:
    """Whether no cross site of the same layer follows a site."""
    return index + 1 == len(layers) or layers[index + 1].side != Side.SIDE_CROSS


def _distance(a: Array, b: Array) -> float:
    return float(np.abs(a.astype(np.float64) - b).max())


def _linear_behind(calls: Sequence[ModuleCall], heads: Array) -> ModuleCall | None:
    """Return the call of a linear map that takes a site's heads, [B, T, H * Dv]; found by value."""
    for call in calls:
        argument = call.argument
        if (
            argument is not None
            and argument.size == heads.size
            and argument.shape[-1] == heads.shape[-1]
            and _distance(argument.reshape(heads.shape), heads) <= 1e-4 * np.abs(heads).max()
        ):
            return call
    return None


def _rows(predictor: Predictor, hidden: Array) -> Array:
    """Return the rows of `hidden` [B, T, D] that a predictor reads: [B, T, D] or [B, D]."""
    if predictor.rows == Predictor.ROWS_ALL:
        return hidden
    if predictor.rows == Predictor.ROWS_MEAN:
        return np.asarray(hidden.mean(1))
    return hidden[:, 0 if predictor.rows == Predictor.ROWS_FIRST else -1]


def _probabilities(logits: Array) -> Array:
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))
