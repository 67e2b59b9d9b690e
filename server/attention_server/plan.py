"""What must be computed for the outputs asked for, decided before anything runs."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from attention_proto.attention.v1.attention_pb2 import AttendGraph, Layer, Manifest

from attention_server.domain import PREDICTIONS, STAGES, OutputSpec, join_path
from attention_server.errors import InvalidRequest

PAIRWISE = ("scores", "weights")  # [H, T, S]
OF_KEYS = ("k", "v")  # rows are key positions, heads those of k and v


@dataclass(frozen=True, slots=True)
class Plan:
    """What a request needs.

    Attributes:
        forms: what to send of the stages, by the name in the answer.
        stages: every stage that must be there for it.
        predictions: whether the head is asked.
        fields: where each form, and predictions, were asked for; what is sent by default has no place.
    """

    forms: dict[str, OutputSpec]
    stages: frozenset[str]
    predictions: bool
    fields: dict[str, str]

    @property
    def weights(self) -> bool:
        """Whether weights are needed."""
        return "weights" in self.stages


def make_plan(specs: Sequence[OutputSpec], manifest: Manifest) -> Plan:
    """Decide what to compute.

    Raises:
        InvalidRequest: a name, head, layer or option is not offered, or two outputs share a name.
    """
    layer = manifest.layers[-1]
    forms: dict[str, OutputSpec] = {}
    fields: dict[str, str] = {}
    predictions = False
    for index, spec in enumerate(specs or _default(manifest)):
        field = f"outputs[{index}]"
        if spec.name == PREDICTIONS:
            _check_predictions(spec, manifest, field)
            predictions = True
            if specs:
                fields[PREDICTIONS] = field
            continue
        _check(spec, manifest, layer, field)
        name = spec.alias or spec.name
        if name in forms or name == PREDICTIONS:
            raise InvalidRequest(f"the name {name!r} is taken; give this output another `as`", field=field)
        forms[name] = spec
        fields[name] = field
    stages = {spec.name for spec in forms.values()} | ({"output"} if predictions else set())
    return Plan(forms, frozenset(stages), predictions, fields)


def choose_graph(layer: Layer, device: str, *, weights: bool, mask: bool) -> AttendGraph:
    """Return the cheapest graph that gives the weights asked for, takes the mask given and runs on the device.

    Raises:
        LookupError: there is none, which loading has ruled out.
    """
    for graph in layer.attend:
        if graph.weights >= weights and graph.mask >= mask and (not graph.devices or device in graph.devices):
            return graph
    raise LookupError(f"no graph of layer {layer.name} gives weights={weights} with mask={mask} on {device}")


def answer_bytes(plan: Plan, layer: Layer, widths: tuple[int, int, int], queries: int, keys: int) -> int:
    """Return how many bytes the outputs of one sequence will have.

    Args:
        plan: the outputs.
        layer: the layer that gives them.
        widths: Dh, Dv and D as they are for this sequence.
        queries: T.
        keys: S.
    """
    return sum(_form_bytes(spec, layer, widths, queries, keys) for spec in plan.forms.values())


def _form_bytes(spec: OutputSpec, layer: Layer, widths: tuple[int, int, int], queries: int, keys: int) -> int:
    head, value_head, output = widths
    all_heads = layer.key_value_heads if spec.name in OF_KEYS else layer.heads
    heads = 1 if spec.reduce != "none" or spec.name == "output" else len(spec.heads) or all_heads
    rows = len(spec.rows) or (keys if spec.name in OF_KEYS else queries)
    columns = {"q": head, "k": head, "v": value_head, "heads": value_head, "output": output}.get(spec.name, keys)
    size = 2 if spec.data_type == "FP16" else 4
    if spec.top_k:
        columns, size = min(spec.top_k, keys), size + (2 if keys <= np.iinfo(np.uint16).max + 1 else 4)
    return heads * rows * columns * size


def _default(manifest: Manifest) -> list[OutputSpec]:
    return [OutputSpec("output"), *([OutputSpec(PREDICTIONS)] if manifest.predictors else [])]


def _check_predictions(spec: OutputSpec, manifest: Manifest, field: str) -> None:
    if not manifest.predictors:
        raise InvalidRequest("this model has no head, so it predicts nothing", field=join_path(field, "name"))
    if spec != OutputSpec(PREDICTIONS):
        raise InvalidRequest("predictions take no options", field=field)


def _check(spec: OutputSpec, manifest: Manifest, layer: Layer, field: str) -> None:
    if spec.name not in STAGES:
        close = difflib.get_close_matches(spec.name, STAGES, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        offered = ", ".join((*STAGES, PREDICTIONS) if manifest.predictors else STAGES)
        raise InvalidRequest(f"there is no {spec.name!r} among {offered}{hint}", field=join_path(field, "name"))
    if spec.top_k and spec.name not in PAIRWISE:
        raise InvalidRequest(f"is for {' and '.join(PAIRWISE)}, not for {spec.name}", field=join_path(field, "top_k"))
    if spec.name == "output" and (spec.heads or spec.reduce != "none"):
        raise InvalidRequest(
            "output has no heads: they are combined; ask for `heads`",
            field=join_path(field, "heads" if spec.heads else "reduce"),
        )
    heads = layer.key_value_heads if spec.name in OF_KEYS else layer.heads
    for head in spec.heads:
        if head >= heads:
            raise InvalidRequest(f"there is no head {head}; there are {heads}, from 0", field=join_path(field, "heads"))
    names = [each.name for each in manifest.layers]
    for name in spec.layers:
        if name not in names:
            raise InvalidRequest(
                f"there is no layer {name!r}; there is {', '.join(names)}", field=join_path(field, "layers")
            )
