"""The contract between a manifest and its graphs: tensors by name and width along the chain, heads and labels."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from attention_proto.attention.v1.attention_pb2 import Layer, Manifest, Predictor, Side
from attention_proto.chains import Chain, kept_names, source_chain, target_chain
from attention_proto.folder import LOGITS, TRANSFORMER, tensor_name
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
    if manifest.block != TRANSFORMER and len(manifest.layers) > 1:
        raise ContractError(
            f"a block {manifest.block!r} is one attention, and the manifest has {len(manifest.layers)} layers"
        )
    _check_names(manifest)
    _check_sides(manifest)
    for layer in manifest.layers:
        if manifest.block == TRANSFORMER:
            _check_widths(layer)
        _check_layer(layer, graphs, device)
    if manifest.logits_dim and len(manifest.predictors) != 1:
        raise ContractError(f"logits are those of one predictor, and the manifest has {len(manifest.predictors)}")
    for predictor in manifest.predictors:
        if predictor.rows == Predictor.ROWS_UNSPECIFIED or not (predictor.labels or predictor.vocabulary):
            raise ContractError(f"predictor {predictor.name!r} says no rows, or no labels")
        if predictor.vocabulary and not manifest.text.front.name:
            raise ContractError(
                f"predictor {predictor.name!r} has a vocabulary for labels, and the model reads no text"
            )
    for signature in _surroundings(manifest):
        _check_signature(signature, graphs)
    _check_chains(manifest, graphs)


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
    first, last, text = target_chain(manifest).layers[0], manifest.layers[-1], manifest.text
    is_transformer = manifest.block == TRANSFORMER
    memory = {} if is_transformer else {"key": first.key_dim, "value": first.value_dim}
    if text.front.name:
        inputs = dict.fromkeys(OF_TEXT, ANY)
        yield GraphSignature(text.front.name, inputs, ("tokens",), {"query": first.query_dim}, memory)
    if source := source_chain(manifest):
        inputs, given = dict.fromkeys(OF_TEXT, ANY), {"query": source.layers[0].query_dim}
        yield GraphSignature(text.memory_front.name, inputs, ("tokens",), given)
    elif text.memory_front.name:
        value = {"value": first.value_dim}
        yield GraphSignature(text.memory_front.name, {"tokens": ANY}, ("tokens",), {"key": first.key_dim}, value)
    if manifest.predictors:
        labels = {predictor.name: len(predictor.labels) for predictor in manifest.predictors}
        labels |= {LOGITS: manifest.logits_dim} if manifest.logits_dim else {}
        stage = head_source(manifest)
        width = manifest.hidden_dim if is_transformer else last.output_dim
        yield GraphSignature(manifest.head.name, {stage: width}, (stage,), labels)
    if last.HasField("pool"):
        sources = {"query": last.query_dim, "key": last.key_dim, "value": last.value_dim, "pool": ANY}
        yield GraphSignature(last.pool.name, sources, tuple(sources), {"output": last.output_dim})


def _check_sides(manifest: Manifest) -> None:
    """Check that the sites and segments of an encoder-decoder stand in order, with all that both chains need."""
    layers, segments = manifest.layers, manifest.segments
    sides = [*(layer.side for layer in layers), *(segment.side for segment in segments)]
    if set(sides) == {Side.SIDE_TARGET}:
        return
    source, target = source_chain(manifest), target_chain(manifest)
    if manifest.block != TRANSFORMER or source is None:
        raise ContractError("has sites of a source; these are of transformers, and the first site is one of them")
    if Side.SIDE_SOURCE in [*sides[target.begin : len(layers)], *sides[len(layers) + len(source.segments) :]]:
        raise ContractError("has sites or segments of the source behind those of the target")
    if not any(layer.side == Side.SIDE_CROSS for layer in layers):
        raise ContractError("has a source that no site attends to")
    for chain in (source, target):
        if len(chain.segments) != len(chain.layers) + 1:
            words = f"has {len(chain.segments)} segments for {len(chain.layers)} sites of one chain"
            raise ContractError(f"{words}; there is one before each and one behind the last")
        if not chain.front:
            raise ContractError("has a source and a target, and lacks the front of one of them")


def _check_chains(manifest: Manifest, graphs: Mapping[str, Graph]) -> None:
    """Check that each graph's inputs are written before it, with the widths that it takes.

    Raises:
        ContractError: a tensor is missing, or of another width; the message names it.
    """
    source, kept = source_chain(manifest), [each for each in kept_names(manifest) if each is not None]
    of_source: dict[str, int] = {}
    if source is not None:
        written = _check_chain(source, manifest, graphs, {})
        missing = sorted({name for names in kept for name in names} - set(written))
        if missing:
            raise ContractError(f"no segment of the source gives {', '.join(missing)}, which a cross site attends to")
        of_source = {name: written[name] for names in kept for name in names}
    _check_chain(target_chain(manifest), manifest, graphs, of_source)


def _check_chain(
    chain: Chain, manifest: Manifest, graphs: Mapping[str, Graph], of_source: Mapping[str, int]
) -> dict[str, int]:
    """Check the graphs of one chain; return the widths of all that is written."""
    layers, segments = chain.layers, chain.segments
    is_transformer = manifest.block == TRANSFORMER
    if len(segments) not in (len(layers), len(layers) + 1, *((0,) if manifest.block == "dot_product" else ())):
        raise ContractError(f"has {len(segments)} segments for {len(layers)} layers; each layer has one before it")
    first = layers[0]
    written = {"query": first.query_dim} | dict.fromkeys(OF_TEXT[1:], ANY)
    if not is_transformer:
        written |= {"key": first.key_dim, "value": first.value_dim}
    if not segments:
        written |= {"k": first.key_dim, "v": first.value_dim}
    names = iter(of_source.items())
    for index, layer in enumerate(layers):
        if index < len(segments):
            _write_segment(segments[index].graph.name, index, written, chain, manifest, graphs)
        if layer.side == Side.SIDE_CROSS:
            written["k"], written["v"] = (width for _, width in itertools.islice(names, 2))
        written.pop("hidden", None)
        written.pop("output", None)
        _write_site(layer, written, graphs, is_transformer=is_transformer)
        _check_stages(index, chain, written, graphs)
    if len(segments) > len(layers):
        _write_segment(segments[-1].graph.name, len(layers), written, chain, manifest, graphs)
    return written


def _check_stages(index: int, chain: Chain, written: Mapping[str, int], graphs: Mapping[str, Graph]) -> None:
    """Check that some graph gives the stages that a site offers: behind the site, or behind its layer."""
    layer = chain.layers[index]
    end = index + 1 + (chain.layers[index + 1].side == Side.SIDE_CROSS if index + 1 < len(chain.layers) else 0)

    def behind(place: int) -> Mapping[str, object]:
        return graphs[chain.segments[place].graph.name].outputs if place < len(chain.segments) else {}

    for stage in layer.stages:
        needed = "output" if stage == "contributions" else stage
        given = set(behind(end if stage == "hidden" else index + 1))
        if needed not in given | (set() if stage == "contributions" else set(written)):
            raise ContractError(f"layer {layer.name} offers {stage}, but no graph behind it gives {needed}")


def _write_segment(
    file: str, index: int, written: dict[str, int], chain: Chain, manifest: Manifest, graphs: Mapping[str, Graph]
) -> None:
    """Check a segment, and add its outputs to the widths that are written."""
    graph, layers = graphs[file], chain.layers
    missing = sorted(set(graph.inputs) - set(written))
    if missing:
        raise ContractError(f"{file} takes {', '.join(missing)}, which no graph gives before it")
    outputs: dict[str, int] = {}
    optional: dict[str, int] = {}
    if index < len(layers):
        layer = layers[index]
        outputs = {} if layer.side == Side.SIDE_CROSS else _projected(layer)
        of_query = {"q": layer.heads * layer.head_dim}
        optional = {"query": layer.query_dim}
        (outputs if manifest.block == TRANSFORMER else optional).update(of_query)
    if index:
        optional |= {"output": layers[index - 1].output_dim, "hidden": manifest.hidden_dim}
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
