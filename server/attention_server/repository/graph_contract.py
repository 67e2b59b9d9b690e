"""Whether a model's graphs are what its manifest says: names, widths and labels. A lie found here answers nobody."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from attention_proto.attention.v1.attention_pb2 import Layer, Manifest, Predictor

from attention_server.inference.engine.protocol import Graph, Shape
from attention_server.inference.planner import choose_graph

BLOCKS = ("dot_product", "self_attention", "multi_head", "cross_attention")
ANY = 0  # of a width in the manifest


class ContractError(ValueError):
    """A manifest and its graphs contradict each other."""


@dataclass(frozen=True)
class Place:
    """What a graph has to take and give in its place: the last dimension of each, ANY for any.

    Attributes:
        file: the graph's.
        inputs: exactly these.
        outputs: at least these.
        optional: what it may give besides.
    """

    file: str
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    optional: Mapping[str, int]


def check(manifest: Manifest, graphs: Mapping[str, Graph], device: str) -> None:
    """Check a model before it is served.

    Args:
        manifest: what its folder says.
        graphs: those that the device needs, by file name.
        device: where it is to compute.

    Raises:
        ContractError: they contradict each other; says where.
    """
    if manifest.block not in BLOCKS:
        raise ContractError(f"block {manifest.block!r} is none of {', '.join(BLOCKS)}")
    for layer in manifest.layers:
        _check_layer(layer, graphs, device)
    for predictor in manifest.predictors:
        if predictor.rows == Predictor.ROWS_UNSPECIFIED or not predictor.labels:
            raise ContractError(f"predictor {predictor.name!r} says no rows, or no labels")
    for place in _places(manifest, graphs):
        _check_place(place, graphs)


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


def _places(manifest: Manifest, graphs: Mapping[str, Graph]) -> Iterator[Place]:
    for layer in manifest.layers:
        yield from _layer_places(layer, graphs)
    for layer in manifest.layers[:-1]:
        width = layer.output_dim
        yield Place(layer.after.name, {"query": width, "output": width}, {"next": width}, {})
    first, last, text = manifest.layers[0], manifest.layers[-1], manifest.text
    memory = {"key": first.key_dim, "value": first.value_dim}
    if text.front.name:
        yield Place(text.front.name, {"tokens": ANY}, {"query": first.query_dim}, memory)
    if text.memory_front.name:
        yield Place(text.memory_front.name, {"tokens": ANY}, {"key": memory["key"]}, {"value": memory["value"]})
    if manifest.predictors:
        labels = {predictor.name: len(predictor.labels) for predictor in manifest.predictors}
        yield Place(manifest.head.name, {"output": last.output_dim}, labels, {})


def _layer_places(layer: Layer, graphs: Mapping[str, Graph]) -> Iterator[Place]:
    q, heads = layer.heads * layer.head_dim, layer.heads * layer.value_head_dim
    k, v = layer.key_value_heads * layer.head_dim, layer.key_value_heads * layer.value_head_dim
    if layer.HasField("project"):
        yield Place(layer.project.name, {"key": layer.key_dim, "value": layer.value_dim}, {"k": k, "v": v}, {})
    else:
        k, v = layer.key_dim, layer.value_dim
    if layer.HasField("pool"):
        sources = {"query": layer.query_dim, "key": layer.key_dim, "value": layer.value_dim}
        yield Place(layer.pool.name, sources | {"pool": ANY}, {"output": layer.output_dim}, {})
    for attend in (each for each in layer.attend if each.file.name in graphs):
        inputs = {"query": layer.query_dim, "k": k, "v": v} | ({"mask": ANY} if attend.mask else {})
        outputs = {"output": layer.output_dim} | ({"weights": ANY} if attend.weights else {})
        yield Place(attend.file.name, inputs, outputs, {"q": q, "heads": heads})


def _check_place(place: Place, graphs: Mapping[str, Graph]) -> None:
    graph = graphs.get(place.file)
    if graph is None:
        raise ContractError(f"the manifest names no graph where it needs one, for {sorted(place.outputs)}")
    if set(graph.inputs) != set(place.inputs) or not set(place.outputs) <= set(graph.outputs):
        raise ContractError(
            f"{place.file} takes {sorted(graph.inputs)} and gives {sorted(graph.outputs)}; "
            f"its place needs {sorted(place.inputs)} and {sorted(place.outputs)}"
        )
    given = {**graph.inputs, **graph.outputs}
    for name, width in {**place.inputs, **place.outputs, **place.optional}.items():
        found = _dimension(given.get(name, ()), -1)
        if ANY not in (width, found) and found != width:
            raise ContractError(f"{place.file}: {name} is {found} wide, but the manifest says {width}")


def _dimension(shape: Shape, axis: int) -> int:
    """Return a dimension; ANY where it varies or is not there."""
    size = shape[axis] if len(shape) > max(axis, 0) else None
    return size if isinstance(size, int) else ANY
