"""The contract between a manifest and its graphs: inputs and outputs by name, widths, heads and labels."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from attention_proto.attention.v1.attention_pb2 import Layer, Manifest, Predictor

from attention_server.inference.engine.protocol import Graph, Shape
from attention_server.inference.planner import choose_graph

BLOCKS = ("dot_product", "self_attention", "multi_head", "cross_attention")
ANY = 0  # a width in the manifest, where any is taken


class ContractError(ValueError):
    """The graphs of a model are not those that its manifest describes."""


@dataclass(frozen=True)
class GraphSignature:
    """The inputs and outputs that the manifest demands of a graph, by name, with the width of each; ANY for any.

    Attributes:
        file: the name of the graph's file.
        inputs: all inputs of the graph.
        outputs: outputs that it must have.
        optional: outputs that it may have.
    """

    file: str
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    optional: Mapping[str, int]


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
    for layer in manifest.layers:
        _check_layer(layer, graphs, device)
    for predictor in manifest.predictors:
        if predictor.rows == Predictor.ROWS_UNSPECIFIED or not predictor.labels:
            raise ContractError(f"predictor {predictor.name!r} says no rows, or no labels")
    for signature in _signatures(manifest, graphs):
        _check_signature(signature, graphs)


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


def _signatures(manifest: Manifest, graphs: Mapping[str, Graph]) -> Iterator[GraphSignature]:
    for layer in manifest.layers:
        yield from _layer_signatures(layer, graphs)
    for layer in manifest.layers[:-1]:
        width = layer.output_dim
        yield GraphSignature(layer.after.name, {"query": width, "output": width}, {"next": width}, {})
    first, last, text = manifest.layers[0], manifest.layers[-1], manifest.text
    memory = {"key": first.key_dim, "value": first.value_dim}
    if text.front.name:
        yield GraphSignature(text.front.name, {"tokens": ANY}, {"query": first.query_dim}, memory)
    if text.memory_front.name:
        yield GraphSignature(
            text.memory_front.name, {"tokens": ANY}, {"key": memory["key"]}, {"value": memory["value"]}
        )
    if manifest.predictors:
        labels = {predictor.name: len(predictor.labels) for predictor in manifest.predictors}
        yield GraphSignature(manifest.head.name, {"output": last.output_dim}, labels, {})


def _layer_signatures(layer: Layer, graphs: Mapping[str, Graph]) -> Iterator[GraphSignature]:
    q, heads = layer.heads * layer.head_dim, layer.heads * layer.value_head_dim
    k, v = layer.key_value_heads * layer.head_dim, layer.key_value_heads * layer.value_head_dim
    if layer.HasField("project"):
        yield GraphSignature(layer.project.name, {"key": layer.key_dim, "value": layer.value_dim}, {"k": k, "v": v}, {})
    else:
        k, v = layer.key_dim, layer.value_dim
    if layer.HasField("pool"):
        sources = {"query": layer.query_dim, "key": layer.key_dim, "value": layer.value_dim}
        yield GraphSignature(layer.pool.name, sources | {"pool": ANY}, {"output": layer.output_dim}, {})
    for attend in (each for each in layer.attend if each.file.name in graphs):
        inputs = {"query": layer.query_dim, "k": k, "v": v} | ({"mask": ANY} if attend.mask else {})
        outputs = {"output": layer.output_dim} | ({"weights": ANY} if attend.weights else {})
        yield GraphSignature(attend.file.name, inputs, outputs, {"q": q, "heads": heads})


def _check_signature(signature: GraphSignature, graphs: Mapping[str, Graph]) -> None:
    graph = graphs.get(signature.file)
    if graph is None:
        raise ContractError(f"the manifest names no graph where it needs one, for {sorted(signature.outputs)}")
    if set(graph.inputs) != set(signature.inputs) or not set(signature.outputs) <= set(graph.outputs):
        raise ContractError(
            f"{signature.file} takes {sorted(graph.inputs)} and gives {sorted(graph.outputs)}; "
            f"the manifest needs {sorted(signature.inputs)} and {sorted(signature.outputs)}"
        )
    given = {**graph.inputs, **graph.outputs}
    for name, width in {**signature.inputs, **signature.outputs, **signature.optional}.items():
        found = _dimension(given.get(name, ()), -1)
        if ANY not in (width, found) and found != width:
            raise ContractError(f"{signature.file}: {name} is {found} wide, but the manifest says {width}")


def _dimension(shape: Shape, axis: int) -> int:
    """Return a dimension; ANY where it varies or is missing."""
    size = shape[axis] if len(shape) > max(axis, 0) else None
    return size if isinstance(size, int) else ANY
