"""The planner: from the outputs of a request to the stages of each layer."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from attention_proto.attention.v1.attention_pb2 import AttendGraph, Layer, Manifest
from attention_proto.stages import PAIRWISE, PREDICTIONS, PROJECTED, STAGES

from attention_server.domain.messages import OutputSpec
from attention_server.errors import InvalidRequest, join_path

_COLUMNS = {name: ("Dh", "Dv", "D", "S", None).index(stage.column_axis) for name, stage in STAGES.items()}
EVERY_LAYER = "*"
ALIAS = 256  # characters


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """One output: its name in the answer, its spec, its layer, and its field in the request."""

    name: str
    spec: OutputSpec
    layer: int
    field: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The computation of a request's outputs.

    Attributes:
        forms: the outputs to send, in order.
        stages: the stages to compute of each layer that runs; with the output, in which an overflow shows, unless
            the projections suffice.
        predictions: whether the head runs.
        predictions_field: the field that asks for predictions; empty where they are sent by default.
        pools: whether the last layer that runs has a graph for pooled outputs, and gives no further ones.
        shapes: whether outputs are shaped: rows, heads or types are chosen, heads reduced, or predictions made. If not,
            stages are sent as computed.
    """

    forms: tuple[OutputPlan, ...]
    stages: tuple[frozenset[str], ...]
    predictions: bool
    predictions_field: str
    pools: bool
    shapes: bool


def make_plan(specs: Sequence[OutputSpec], manifest: Manifest) -> Plan:
    """Plan the outputs of a request.

    Raises:
        InvalidRequest: a name, head, layer or option is not offered, or two outputs share a name.
    """
    forms: list[OutputPlan] = []
    predictions_field = ""
    for index, spec in enumerate(specs or [OutputSpec("output")]):
        field = spec.path or f"outputs[{index}]"
        if spec.name == PREDICTIONS:
            _check_predictions(spec, manifest, field)
            predictions_field = field
        else:
            forms += _forms(spec, manifest, field)
    _check_names(forms)
    predictions = bool(predictions_field) or (not specs and bool(manifest.predictors))
    stages = _stages(forms, manifest, predictions=predictions)
    pools = not predictions and _pools(forms, len(stages) - 1, manifest)
    shapes = predictions or not all(form.spec.is_whole for form in forms)
    return Plan(tuple(forms), stages, predictions, predictions_field, pools, shapes)


def choose_graph(layer: Layer, device: str, *, weights: bool, mask: bool) -> AttendGraph:
    """Return the cheapest graph that gives the weights asked for, takes the mask given and runs on the device.

    Raises:
        LookupError: there is none; loading has ruled that out.
    """
    for graph in layer.attend:
        if graph.weights >= weights and graph.mask >= mask and (not graph.devices or device in graph.devices):
            return graph
    raise LookupError(f"no graph of layer {layer.name} gives weights={weights} with mask={mask} on {device}")


def answer_bytes(form: OutputPlan, layer: Layer, widths: tuple[int, int, int], queries: int, keys: int) -> int:
    """Return the size of one output of one sequence, in bytes.

    Args:
        form: the output.
        layer: the layer that gives it.
        widths: Dh, Dv and D of this sequence.
        queries: T.
        keys: S.
    """
    spec, stage = form.spec, STAGES[form.spec.name]
    heads = 1 if spec.reduce != "none" or not stage.head_axis else len(spec.heads) or _heads(spec, layer)
    rows = 1 if spec.pool != "none" else len(spec.rows) or (keys if stage.is_of_keys else queries)
    columns = (*widths, keys, 1)[_COLUMNS[spec.name]]
    size = 2 if spec.data_type == "FP16" else 4
    if spec.top_k:
        columns, size = min(spec.top_k, keys), size + index_type(keys).itemsize
    return heads * rows * columns * size


def index_type(keys: int) -> "np.dtype[np.uint16] | np.dtype[np.int32]":
    """Return the type of top-k indices: the narrower where every position fits."""
    return np.dtype(np.uint16) if keys <= np.iinfo(np.uint16).max + 1 else np.dtype(np.int32)


def _forms(spec: OutputSpec, manifest: Manifest, field: str) -> Iterator[OutputPlan]:
    """Yield one form for each layer that a spec asks for."""
    _check_options(spec, manifest, field)
    layers = _layers(spec, manifest, field)
    for index in layers:
        layer = manifest.layers[index]
        _check_heads(spec, layer, field)
        name = spec.alias or spec.name
        yield OutputPlan(f"{name}@{layer.name}" if len(layers) > 1 else name, spec, index, field)


def _layers(spec: OutputSpec, manifest: Manifest, field: str) -> list[int]:
    names = [layer.name for layer in manifest.layers]
    if EVERY_LAYER in spec.layers:
        return list(range(len(names)))
    for name in spec.layers:
        if name not in names:
            raise InvalidRequest(
                f"there is no layer {name[:64]!r}; there is {', '.join(names)}", field=join_path(field, "layers")
            )
    return [names.index(name) for name in spec.layers] or [len(names) - 1]


def _stages(forms: Sequence[OutputPlan], manifest: Manifest, *, predictions: bool) -> tuple[frozenset[str], ...]:
    needed: list[set[str]] = [set() for _ in manifest.layers]
    for form in forms:
        needed[form.layer].add(form.spec.name)
    if predictions:
        needed[-1].add("output")
    last = max(index for index, stages in enumerate(needed) if stages)
    for stages in needed[:last]:
        stages.add("output")  # the input of the next layer
    return tuple(frozenset(stages if stages <= PROJECTED else stages | {"output"}) for stages in needed[: last + 1])


def _pools(forms: Sequence[OutputPlan], last: int, manifest: Manifest) -> bool:
    if not manifest.layers[last].HasField("pool"):
        return False
    return all(form.spec.name == "output" and form.spec.pool != "none" for form in forms if form.layer == last)


def _check_predictions(spec: OutputSpec, manifest: Manifest, field: str) -> None:
    if not manifest.predictors:
        raise InvalidRequest("this model has no head, so it predicts nothing", field=join_path(field, "name"))
    if spec._replace(path="") != OutputSpec(PREDICTIONS):
        raise InvalidRequest("predictions take no options", field=field)


def _check_options(spec: OutputSpec, manifest: Manifest, field: str) -> None:
    if spec.name not in STAGES:
        close = difflib.get_close_matches(spec.name[:64], STAGES, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        offered = ", ".join((*STAGES, PREDICTIONS) if manifest.predictors else STAGES)
        raise InvalidRequest(f"there is no {spec.name[:64]!r} among {offered}{hint}", field=join_path(field, "name"))
    stage = STAGES[spec.name]
    if spec.top_k and not stage.takes("top_k"):
        raise InvalidRequest(f"is for {' and '.join(PAIRWISE)}, not for {spec.name}", field=join_path(field, "top_k"))
    if (spec.heads or spec.reduce != "none") and not stage.takes("heads"):
        option = "heads" if spec.heads else "reduce"
        raise InvalidRequest(
            f"{spec.name} has no heads: they are combined; ask for `heads`", field=join_path(field, option)
        )


def _check_heads(spec: OutputSpec, layer: Layer, field: str) -> None:
    heads = _heads(spec, layer)
    for head in spec.heads:
        if head >= heads:
            raise InvalidRequest(f"there is no head {head}; there are {heads}, from 0", field=join_path(field, "heads"))
    if len(set(spec.heads)) < len(spec.heads):
        raise InvalidRequest("names a head twice", field=join_path(field, "heads"))


def _heads(spec: OutputSpec, layer: Layer) -> int:
    return layer.key_value_heads if STAGES[spec.name].head_axis == "Hkv" else layer.heads


def _check_names(forms: Sequence[OutputPlan]) -> None:
    taken = {PREDICTIONS}
    for form in forms:
        if len(form.spec.alias) > ALIAS:
            raise InvalidRequest(
                f"names an output by {len(form.spec.alias)} characters; {ALIAS} may be", field=form.field
            )
        if form.name in taken:
            raise InvalidRequest(
                f"the name {form.name[:64]!r} is taken; give this output another `as`", field=form.field
            )
        taken.add(form.name)
