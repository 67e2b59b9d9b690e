"""Comparison of a version's folder with its source: equal at every site and layer, or refused.

The first difference is reported in the order of computation: embeddings, then for each site its weights, its `output`
and the `hidden` of its layer, then predictions. A difference is allowed up to `RTOL` of the stage's largest value, or
up to twice the error that the source's own float32 has from float64, if that is more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Layer, Parity, Predictor
from torch import nn

from attention_export.importing import ImportFailure
from attention_export.importing.transformer.cases import Case, comparison_cases
from attention_export.importing.transformer.reference import Array, ModuleCall, Reference, SourceStages
from attention_export.importing.transformer.runner import SiteStages, VersionRunner, VersionStages
from attention_export.importing.transformer.structure import Mismatch, check_structure, place, site_reference

Progress = Callable[[str], None]
__all__ = ["Mismatch", "compare"]

RTOL = 2e-5  # of the largest value of a stage
LARGEST = 500_000_000  # parameters; the reference holds each in 12 bytes beside the source's 4


@dataclass
class Comparison:
    """The state of a comparison: the reference, the version, and the errors found so far.

    Attributes:
        output_calls: for each site, the module call of the source that gives its `output`; empty before the first case.
    """

    reference: Reference
    version: VersionRunner
    cases: int = 0
    errors: dict[str, float] = field(default_factory=dict)
    limited_by_float32: int = 0
    output_calls: list[ModuleCall | None] = field(default_factory=list)

    def compare_case(self, case: Case) -> None:
        """Compare all stages of a case.

        Raises:
            Mismatch: a stage differs.
        """
        exact = self.reference.exact.run(case.arguments)
        single = self.reference.single.run(case.arguments) if self.reference.is_exact else exact
        self._check_count(exact)
        for row, length in case.sequences():
            tokens = case.tokens[row, :length]
            types = None if case.token_types is None else case.token_types[row, :length]
            found = self.version.run(tokens, types, first_position=case.first_position, masked=case.masked)
            self._compare_run(case, found, _cut(exact, row, length), _cut(single, row, length))
        self.cases += 1

    def compare_outputs(self, case: Case) -> None:
        """Compare `output` of every site that offers it with the result of the source's module.

        Raises:
            Mismatch: a site's output differs, or no module of the source gives it.
        """
        found = self.version.run(case.tokens, case.token_types)
        exact = self.reference.exact.run(case.arguments)
        calls = self.reference.exact.calls(case.arguments)
        for index, layer in enumerate(self.version.manifest.layers):
            if "output" not in layer.stages:
                continue
            site = found.sites[index]
            heads = site_reference(layer, site, exact.weights[index])
            call = _linear_behind(calls, heads) or self._module_call(case, index, layer)
            if call is None or site.output is None:
                raise Mismatch(
                    layer.name, "output", f"{place(layer)}: no module of the source gives its `output` ({case.name})"
                )
            single = next(
                each for each in self.reference.single.calls(case.arguments, [call.path]) if each.number == call.number
            )
            self.check(layer, "output", case, site.output, call.result, single.result)

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
        error, own = _distance(found, exact), _distance(single, exact)
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
        layers = self.version.manifest.layers
        if len(exact.weights) != len(layers):
            raise Mismatch(
                layers[min(len(exact.weights), len(layers) - 1)].name,
                "weights",
                f"the source returns weights of {len(exact.weights)} attentions, and {len(layers)} of them were found "
                "at transformers' attention interface: an attention is computed beside it",
            )

    def _compare_run(self, case: Case, found: VersionStages, exact: SourceStages, single: SourceStages) -> None:
        layers = self.version.manifest.layers
        self.check(layers[0], "embeddings", case, found.embeddings, exact.hidden[0], single.hidden[0])
        hidden = [index for index, layer in enumerate(layers) if "hidden" in layer.stages]
        for index, (layer, site) in enumerate(zip(layers, found.sites, strict=True)):
            self.check(layer, "weights", case, site.weights, exact.weights[index], single.weights[index])
            if index in hidden:
                # Layers are counted from the end: the last hidden state is the one that every model has.
                place = hidden.index(index) - len(hidden)
                self._check_hidden(layer, case, site, exact.hidden[place], single.hidden[place])
        if self.version.manifest.HasField("head") and exact.logits is not None and single.logits is not None:
            self._compare_predictions(case, found, exact.logits, single.logits)

    def _check_hidden(self, layer: Layer, case: Case, site: SiteStages, exact: Array, single: Array) -> None:
        if site.hidden is None:
            raise Mismatch(layer.name, "hidden", f"{place(layer)}: its segment returns no `hidden`")
        self.check(layer, "hidden", case, site.hidden, exact, single)

    def _compare_predictions(self, case: Case, found: VersionStages, exact: Array, single: Array) -> None:
        assert found.hidden is not None
        manifest = self.version.manifest
        for predictor in manifest.predictors:
            rows = _rows(predictor, found.hidden)
            probabilities = self.version.predictions(rows.reshape(-1, rows.shape[-1]))[predictor.name]
            probabilities = probabilities.reshape(*rows.shape[:-1], -1)
            expected, rounded = (_probabilities(logits) for logits in (exact, single))
            self.check(manifest.layers[-1], "predictions", case, probabilities, expected, rounded)

    def _module_call(self, case: Case, index: int, layer: Layer) -> ModuleCall | None:
        path = self.reference.exact.module_path(layer.path)
        number = sum(each.path == layer.path for each in self.version.manifest.layers[:index])
        calls = self.reference.exact.calls(case.arguments, [path])
        return next((call for call in calls if call.number == number), None)


def compare(model: nn.Module, folder: Path, progress: Progress) -> Parity:
    """Compare a version's folder with its source.

    The stages of a site lose `contributions` in the folder's manifest if its `output` is not affine in `heads`.

    Args:
        model: the source in float32; left as it is.
        folder: of the version.
        progress: called with a line for each step.

    Returns:
        The record for the manifest.

    Raises:
        Mismatch: a stage differs; the first site that does is named.
        ImportFailure: the source is too large, or returns no weights or hidden states.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters > LARGEST:
        raise ImportFailure(
            f"the model has {parameters:,} parameters; a comparison with the source takes 16 bytes for each, and is "
            f"made up to {LARGEST:,}"
        )
    comparison = Comparison(Reference(model), VersionRunner(folder))
    progress(f"comparing with {comparison.reference.description}")
    cases = comparison_cases(comparison.version, comparison.reference.exact)
    for case in cases:
        progress(f"comparing {case.name}")
        comparison.compare_case(case)
    whole = next(case for case in cases if case.lengths is None and case.tokens.shape[1] > 2)
    comparison.compare_outputs(whole)
    progress("comparing the graphs of sites, and rows of segments alone with rows together")
    check_structure(comparison.version, comparison.version.run(whole.tokens, whole.token_types))
    return comparison.parity()


def _cut(stages: SourceStages, rows: slice, length: int) -> SourceStages:
    """Return the stages of some sequences of a batch, without padding."""
    logits = stages.logits
    if logits is not None:
        logits = logits[rows, :length] if logits.ndim == 3 else logits[rows]
    return SourceStages(
        [state[rows, :length] for state in stages.hidden],
        [each[rows, :, :length, :length] for each in stages.weights],
        logits,
    )


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
