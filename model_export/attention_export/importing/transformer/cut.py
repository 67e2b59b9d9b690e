"""The cut: a traced source becomes chains of segments between sites, and a head."""

from collections.abc import Container, Iterator

import numpy as np
import onnx_ir as ir

from attention_export.importing import ImportFailure
from attention_export.importing.transformer.chain import Chain, TracedSite
from attention_export.importing.transformer.clean import clean, constant, dims, graph_constant
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
        end_tokens=source.end_tokens if len(chains) > 1 else (),
        head=chains[-1].head(),
        notes=(*source.notes, *rotation_notes(source.config)),
    )


def _start_token(source: Source) -> int:
    if source.start_token is None:
        raise ImportFailure(f"config.json: {START_TOKEN} is missing, the token that a decoder's text begins with")
    return source.start_token


def count_by_positions(graph: ir.Graph, side: Side, base: int) -> None:
    """Let a model that counts its tokens inside read `position_ids` there: 0, 1, .. becomes positions of a row."""
    (positions,) = (value for value in graph.inputs if value.name == side.name(POSITIONS))
    for node in list(graph):
        if node.op_type != "Range" or dims(node.outputs[0]) != [side.length]:
            continue
        start, step = constant(node.inputs[0]), constant(node.inputs[2])
        if start is None or step is None or (start != 0).any() or (step != 1).any():
            continue
        name = node.outputs[0].name
        first = graph_constant(graph, f"{name}_first", np.array(0, np.int64))
        offset = graph_constant(graph, f"{name}_base", np.array(base, np.int64))
        row = ir.Node("", "Gather", [positions, first], attributes=[ir.AttrInt64("axis", 0)])
        counted = ir.Node("", "Sub", [row.outputs[0], offset])
        graph.insert_before(node, [row, counted])
        counted.outputs[0].shape, counted.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
        ir.convenience.replace_all_uses_with(node.outputs[0], counted.outputs[0])


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
