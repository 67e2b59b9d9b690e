"""The contract between a manifest and its graphs: tensors by name and width along the chain, heads and labels."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from attention_proto.attention.v1.attention_pb2 import Layer, Manifest, Predictor, Side
from attention_proto.folder import TRANSFORMER, tensor_name
from attention_proto.offers import EVERY_LAYER

from attention_server.inference.engine.protocol import Graph, Shape
from attention_server.inference.planner import choose_graph, head_source

BLOCKS = ("dot_product", "self_attention", "multi_head", "cross_attention", TRANSFORMER)
FUSED = ("query", "k", "v", "mask")  # inputs of a block's graph of attention
SITE = ("q", "k", "v", "mask")  # inputs of a transformer's
OF_TEXT = ("tokens", "position_ids", "token_type_ids")
POSITIONS = ("query_positions", "key_positions")  # inputs of a bias
ANY = 0  # a width in the manifest, where any is taken


class ContractError(ValueError):
    """The graphs of a model are not those that its manifest describes."""


@dataclass(frozen=True)
class GraphSignature:
    """The inputs and outputs that the manifest demands of a graph, by name, with the width of each; ANY for any.

    Attributes:
        file: the name of the graph's file.
        inputs: the inputs that the graph may have.
        required: those that it has to have.
        outputs: outputs that it must have.
        optional: outputs that it may have.
    """

    file: str
    inputs: Mapping[str, int]
    required: tuple[str, ...]
    outputs: Mapping[str, int]
    optional: Mapping[str, int] = field(default_factory=dict)


def check(manifest: Manifest, graphs: Mapping[str, Graph], device: str) -> None:
    """Check the graphs of a model against its manifest.

    Args:
        manifest: of the model.
        graphs: the graphs that the device needs, by file name.
        device: where the model computes.

    Raises:
        ContractError: graphs and manifest differ; the message says where.
    """
    if manifest.block not in BLOCKS:
        raise ContractError(f"block {manifest.block!r} is none of {', '.join(BLOCKS)}")
    if any(layer.side != Side.SIDE_TARGET for layer in manifest.layers):
        raise ContractError("has sites of a source; only models of one sequence are served")
    _check_names(manifest)
    for layer in manifest.layers:
        if manifest.block == TRANSFORMER:
            _check_widths(layer)
        _check_layer(layer, graphs, device)
    for predictor in manifest.predictors:
        if predictor.rows == Predictor.ROWS_UNSPECIFIED or not (predictor.labels or predictor.vocabulary):
            raise ContractError(f"predictor {predictor.name!r} says no rows, or no labels")
        if predictor.vocabulary and not manifest.text.front.name:
            raise ContractError(
                f"predictor {predictor.name!r} has a vocabulary for labels, and the model reads no text"
            )
    for signature in _surroundings(manifest):
        _check_signature(signature, graphs)
    _check_chain(manifest, graphs)


def _check_names(manifest: Manifest) -> None:
    """Check that requests can tell layers apart by name."""
    names: set[str] = set()
    for index, layer in enumerate(manifest.layers):
        if layer.name in ("", EVERY_LAYER):
            raise ContractError(f"layer {index} of the manifest has the name {layer.name!r}")
        if layer.name in names:
            raise ContractError(f"two layers have the name {layer.name!r}")
        names.add(layer.name)


def _check_widths(layer: Layer) -> None:
    """Check that a transformer's site says its widths, by which limits are checked, and a scale."""
    for name in ("query_dim", "head_dim", "value_head_dim"):
        if not getattr(layer, name):
            raise ContractError(f"layer {layer.name} says no {name}, which a site of a transformer needs")
    if not 0 < layer.scale < math.inf:
        raise ContractError(f"layer {layer.name} has a scale of {layer.scale:g}; it must be above 0 and finite")


def _check_layer(layer: Layer, graphs: Mapping[str, Graph], device: str) -> None:
    if not layer.heads or not layer.key_value_heads or layer.heads % layer.key_value_heads:
        raise ContractError(f"layer {layer.name}: {layer.key_value_heads} key-value heads for {layer.heads} heads")
    for weights, mask in ((False, False), (False, True), (True, False), (True, True)):
        try:
            graph = graphs[choose_graph(layer, device, weights=weights, mask=mask).file.name]
        except LookupError as error:
            raise ContractError(f"layer {layer.name} lacks a graph for weights={weights}, mask={mask}") from error
        if weights and (heads := _dimension(graph.outputs.get("weights", ()), 1)) not in (ANY, layer.heads):
            raise ContractError(f"layer {layer.name} has {layer.heads} heads, but its graph gives weights of {heads}")


def _surroundings(manifest: Manifest) -> Iterator[GraphSignature]:
    """Yield the signatures of fronts, head and pooling."""
    first, last, text = manifest.layers[0], manifest.layers[-1], manifest.text
    is_transformer = manifest.block == TRANSFORMER
    memory = {} if is_transformer else {"key": first.key_dim, "value": first.value_dim}
    if text.front.name:
        inputs = dict.fromkeys(OF_TEXT, ANY)
        yield GraphSignature(text.front.name, inputs, ("tokens",), {"query": first.query_dim}, memory)
    if text.memory_front.name:
        value = {"value": first.value_dim}
        yield GraphSignature(text.memory_front.name, {"tokens": ANY}, ("tokens",), {"key": first.key_dim}, value)
    if manifest.predictors:
        labels = {predictor.name: len(predictor.labels) for predictor in manifest.predictors}
        source = head_source(manifest)
        width = manifest.hidden_dim if is_transformer else last.output_dim
        yield GraphSignature(manifest.head.name, {source: width}, (source,), labels)
    if last.HasField("pool"):
        sources = {"query": last.query_dim, "key": last.key_dim, "value": last.value_dim, "pool": ANY}
        yield GraphSignature(last.pool.name, sources, tuple(sources), {"output": last.output_dim})


def _check_chain(manifest: Manifest, graphs: Mapping[str, Graph]) -> None:
    """Check that each graph's inputs are written before it, with the widths that it takes.

    Raises:
        ContractError: a tensor is missing, or of another width; the message names it.
    """
    layers, segments = manifest.layers, manifest.segments
    is_transformer = manifest.block == TRANSFORMER
    if len(segments) not in (len(layers), len(layers) + 1, *((0,) if manifest.block == "dot_product" else ())):
        raise ContractError(f"has {len(segments)} segments for {len(layers)} layers; each layer has one before it")
    first = layers[0]
    written = {"query": first.query_dim} | dict.fromkeys(OF_TEXT[1:], ANY)
    if not is_transformer:
        written |= {"key": first.key_dim, "value": first.value_dim}
    if not segments:
        written |= {"k": first.key_dim, "v": first.value_dim}
    for index, layer in enumerate(layers):
        if index < len(segments):
            _write_segment(segments[index].graph.name, index, written, manifest, graphs)
        written.pop("hidden", None)
        written.pop("output", None)
        _write_site(layer, written, graphs, is_transformer=is_transformer)
        behind = graphs[segments[index + 1].graph.name].outputs if index + 1 < len(segments) else {}
        for stage in layer.stages:
            given = {*behind, *written} if stage != "contributions" else behind
            if (needed := "output" if stage == "contributions" else stage) not in given:
                raise ContractError(f"layer {layer.name} offers {stage}, but no graph behind it gives {needed}")
    if len(segments) > len(layers):
        _write_segment(segments[-1].graph.name, len(layers), written, manifest, graphs)


def _write_segment(
    file: str, index: int, written: dict[str, int], manifest: Manifest, graphs: Mapping[str, Graph]
) -> None:
    """Check a segment, and add its outputs to the widths that are written."""
    graph, layers = graphs[file], manifest.layers
    missing = sorted(set(graph.inputs) - set(written))
    if missing:
        raise ContractError(f"{file} takes {', '.join(missing)}, which no graph gives before it")
    expected = _projected(layers[index]) if index < len(layers) else {}
    outputs = dict(expected)
    optional: dict[str, int] = {"query": layers[index].query_dim} if index < len(layers) else {}
    optional |= {"q": layers[index].heads * layers[index].head_dim} if index < len(layers) else {}
    if index:
        optional |= {"output": layers[index - 1].output_dim, "hidden": manifest.hidden_dim}
    if manifest.block == TRANSFORMER and index < len(layers):
        outputs["q"] = optional.pop("q")
    _check_signature(GraphSignature(file, dict(written), (), outputs, optional), graphs)
    for name, shape in graph.outputs.items():
        if shape and len(shape) != 3:
            raise ContractError(f"{file}: {name} has the shape {list(shape)}; a segment gives [B, T, width]")
        tensor = tensor_name(name)
        written[tensor] = _dimension(shape, -1) or outputs.get(tensor, optional.get(tensor, ANY))


def _write_site(layer: Layer, written: dict[str, int], graphs: Mapping[str, Graph], *, is_transformer: bool) -> None:
    """Check a site's graphs, and add their outputs to the widths that are written."""
    q, heads = layer.heads * layer.head_dim, layer.heads * layer.value_head_dim
    widths = {**written, **_projected(layer), "mask": ANY}
    if "k" not in written:
        raise ContractError(f"layer {layer.name}: no segment gives its k and v")
    served = [each for each in layer.attend if each.file.name in graphs]
    for attend in served:
        names = [name for name in (SITE if is_transformer else FUSED) if name != "mask" or attend.mask]
        outputs = {"heads": heads} if is_transformer else {"output": layer.output_dim}
        outputs |= {"weights": ANY} if attend.weights else {}
        optional = {} if is_transformer else {"q": q, "heads": heads}
        inputs = {name: widths[name] if name != "q" else q for name in names}
        _check_signature(GraphSignature(attend.file.name, inputs, tuple(names), outputs, optional), graphs)
    if layer.bias.name:
        inputs = dict.fromkeys(POSITIONS, ANY) | {"q": q, "k": widths["k"]}
        _check_signature(GraphSignature(layer.bias.name, inputs, POSITIONS, {"bias": ANY}), graphs)
        if (found := _dimension(graphs[layer.bias.name].outputs["bias"], 1)) not in (ANY, layer.heads):
            raise ContractError(f"layer {layer.name} has {layer.heads} heads, but its bias is of {found}")
    given = set[str].intersection(*(set(graphs[each.file.name].outputs) for each in served))
    written |= {name: width for name, width in (("heads", heads), ("output", layer.output_dim)) if name in given}


def _projected(layer: Layer) -> dict[str, int]:
    """Return the widths of k and v."""
    return {"k": layer.key_value_heads * layer.head_dim, "v": layer.key_value_heads * layer.value_head_dim}


def _check_signature(signature: GraphSignature, graphs: Mapping[str, Graph]) -> None:
    graph = graphs.get(signature.file)
    if graph is None:
        raise ContractError(f"the manifest names no graph where it needs one, for {sorted(signature.outputs)}")
    taken = set(graph.inputs)
    if not set(signature.required) <= taken <= set(signature.inputs) or not set(signature.outputs) <= set(
        graph.outputs
    ):
        raise ContractError(
            f"{signature.file} takes {sorted(graph.inputs)} and gives {sorted(graph.outputs)}; "
            f"the manifest needs {sorted(signature.required)} and {sorted(signature.outputs)}"
        )
    for shapes, widths in (
        (graph.inputs, signature.inputs),
        (graph.outputs, {**signature.outputs, **signature.optional}),
    ):
        for name, width in widths.items():
            found = _dimension(shapes.get(name, ()), -1)
            if ANY not in (width, found) and found != width:
                raise ContractError(f"{signature.file}: {name} is {found} wide, but the manifest says {width}")


def _dimension(shape: Shape, axis: int) -> int:
    """Return a dimension; ANY where it varies or is missing."""
    size = shape[axis] if len(shape) > max(axis, 0) else None
    return size if isinstance(size, int) else ANY
