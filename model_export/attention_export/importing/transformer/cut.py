"""The cut: a traced source becomes chains of segments between sites, and a head."""

from collections.abc import Container, Iterator

import numpy as np
import onnx_ir as ir

from attention_export.importing import ImportFailure
from attention_export.importing.transformer.chain import Chain, TracedSite
from attention_export.importing.transformer.clean import ELEMENTWISE, clean, constant, dims, graph_constant
from attention_export.importing.transformer.interface import DOMAIN, INDEX
from attention_export.importing.transformer.parts import TransformerParts
from attention_export.importing.transformer.rotations import longest, rotation_notes
from attention_export.importing.transformer.sides import POSITIONS, SOURCE, Side
from attention_export.importing.transformer.source import START_TOKEN, Source
from attention_export.importing.transformer.trace import Trace, trace


def cut_source(source: Source) -> TransformerParts:
    """Trace a source and cut it.

    Raises:
        ImportFailure: the source has no such parts, or the parts cannot be written; named by site.
    """
    traced = trace(source)
    clean(traced.model)
    for side in traced.sides:
        count_by_positions(traced.model.graph, side, traced.position_base)
    chains = tuple(cut_chains(source, traced))
    parts = tuple(chain.parts() for chain in chains)
    if len({each.hidden_dim for each in parts}) > 1:
        raise ImportFailure(f"encoder and decoder of {source.architecture} have hidden states of different widths")
    return TransformerParts(
        architecture=source.architecture,
        chains=parts,
        position_base=traced.position_base,
        max_tokens=max(0, longest(source.config) - traced.position_base),
        start_token=_start_token(source) if len(chains) > 1 else None,
        end_tokens=source.end_tokens,
        head=chains[-1].head(),
        notes=(*source.notes, *rotation_notes(source.config)),
    )


def _start_token(source: Source) -> int:
    if source.start_token is None:
        raise ImportFailure(f"config.json: {START_TOKEN} is missing, the token that a decoder's text begins with")
    return source.start_token


def count_by_positions(graph: ir.Graph, side: Side, base: int) -> None:
    """Let a model that counts its tokens inside, 0, 1, .., read `position_ids` there, those of each sequence.

    Raises:
        ImportFailure: the numbers [T] are used otherwise than for rows of a table or as [1,T].
    """
    (positions,) = (value for value in graph.inputs if value.name == side.name(POSITIONS))
    for node in list(graph):
        if node.op_type != "Range" or dims(node.outputs[0]) != [side.length]:
            continue
        start, step = constant(node.inputs[0]), constant(node.inputs[2])
        if start is None or step is None or (start != 0).any() or (step != 1).any():
            continue
        offset = graph_constant(graph, f"{node.outputs[0].name}_base", np.array(base, np.int64))
        counted = ir.Node("", "Sub", [positions, offset])
        counted.outputs[0].shape, counted.outputs[0].type = positions.shape, positions.type
        graph.insert_before(node, [counted])
        _put_sequences(node.outputs[0], counted.outputs[0])


def _put_sequences(value: ir.Value, sequences: ir.Value) -> None:
    """Let users of a tensor [T,..] use one [B,T,..], where it means the same."""
    for node, index in value.uses():
        if node.op_type == "Unsqueeze" and _is_first_axis(node):
            ir.convenience.replace_all_uses_with(node.outputs[0], sequences)
        elif _is_by_number(node, index):
            _put_sequences(node.outputs[0], _again(node, index, sequences))
        elif node.op_type == "Add" and len(dims(node.outputs[0]) or ()) == len(dims(sequences) or ()):
            node.replace_input_with(index, sequences)
        else:
            raise ImportFailure(f"the model counts its tokens inside, for {node.op_type}; positions cannot be given")


def _is_first_axis(node: ir.Node) -> bool:
    axes = constant(node.inputs[1])
    return axes is not None and axes.tolist() == [0]


def _is_by_number(node: ir.Node, index: int) -> bool:
    """Whether a node takes each number by itself: as the row of a table, or with one constant."""
    if node.op_type == "Gather":
        return index == 1 and not node.attributes.get_int("axis", 0)
    others = [value for number, value in enumerate(node.inputs) if number != index and value is not None]
    return node.op_type in ELEMENTWISE and all(dims(value) == [] for value in others)


def _again(node: ir.Node, index: int, sequences: ir.Value) -> ir.Value:
    """Compute a node on sequences too, and return the result [B,T,..]."""
    given = list(node.inputs)
    given[index] = sequences
    again = ir.Node(node.domain, node.op_type, given, attributes=node.attributes.values())
    assert node.graph is not None
    node.graph.insert_before(node, [again])
    result, before = again.outputs[0], node.outputs[0]
    assert sequences.shape is not None
    result.shape, result.type = ir.Shape([sequences.shape[0], *(before.shape or ())]), before.type
    return result


def cut_chains(source: Source, traced: Trace) -> Iterator[Chain]:
    """Yield the chains of a traced source, that of an encoder first.

    A site whose q depends on no input of the target is the encoder's. A site of the target whose k does not is a cross
    attention: its k and v are results of the encoder's chain, `cross_k_0`, `cross_v_0`, `cross_k_1`, ..

    Raises:
        ImportFailure: an attention is neither of one sequence nor of both.
    """
    nodes = sorted((n for n in traced.model.graph if n.domain == DOMAIN), key=lambda n: n.attributes[INDEX].as_int())
    *_, last = traced.sides
    if SOURCE not in traced.sides:
        yield Chain(source, traced, last, _sites(traced, nodes, {index: str(index) for index in range(len(nodes))}))
        return
    dependent = _dependents(traced.model.graph, last)
    own = [index for index, node in enumerate(nodes) if node.inputs[0] in dependent]
    cross = [index for index in own if nodes[index].inputs[1] not in dependent]
    memory = {
        f"cross_{name}_{number}": value
        for number, index in enumerate(cross)
        for name, value in zip("kv", nodes[index].inputs[1:], strict=True)
        if value is not None
    }
    encoder = [index for index in range(len(nodes)) if index not in own]
    if not encoder or not cross:
        raise ImportFailure(
            f"{source.architecture} computes the attention of its {'decoder to the source' if encoder else 'encoder'} "
            "beside the attention interface of transformers"
        )
    names = {index: f"encoder.{number}" for number, index in enumerate(encoder)}
    yield Chain(source, traced, SOURCE, _sites(traced, nodes, names), memory)
    yield Chain(source, traced, last, _sites(traced, nodes, _names_of_decoder(own, cross), cross))


def _names_of_decoder(own: list[int], cross: list[int]) -> dict[int, str]:
    names: dict[int, str] = {}
    layer = -1
    for index in own:
        layer += index not in cross
        name = f"decoder.{layer}.cross" if index in cross else f"decoder.{layer}"
        if layer < 0 or name in names.values():
            raise ImportFailure("a layer of the decoder attends to the source before, or oftener than, to itself")
        names[index] = name
    return names


def _sites(
    traced: Trace, nodes: list[ir.Node], names: dict[int, str], cross: Container[int] = ()
) -> tuple[TracedSite, ...]:
    """Return the sites of a chain by their number in the traced graph and their name."""
    return tuple(
        TracedSite(name, nodes[i], traced.sites[i], i in cross, traced.outputs.get(f"returned_{i}"))
        for i, name in names.items()
    )


def _dependents(graph: ir.Graph, side: Side) -> set[ir.Value]:
    """Return the tensors that depend on a sequence, on more of it than its sizes."""
    found = {value for value in graph.inputs if value.name in side.inputs}
    for node in graph:
        if node.op_type != "Shape" and any(value in found for value in node.inputs):
            found.update(node.outputs)
    return found
