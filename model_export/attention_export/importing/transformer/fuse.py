"""Normalisations and rotary positions that a traced graph writes out, as the operators of ONNX that they are.

Models write them in six to eleven operators each. onnxruntime fuses only the layer normalisation with a mean, and a row
behind a long prefix spends a third of its time between operators.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from attention_export.importing.transformer.clean import constant, dims, graph_constant, remove_unused

BY_HEADS = [0, 2, 1, 3]  # [B,T,H,Dh] <-> [B,H,T,Dh]


def fuse(graph: ir.Graph) -> None:
    """Fuse root mean square normalisations and rotary positions in place; what only resembles them stays."""
    for node in list(graph):
        if node.op_type == "Mul":
            _fuse_norm(graph, node)
    turns = _Turns(graph)
    for node in list(graph):
        if node.op_type == "Add":
            turns.fuse(node)
    remove_unused(graph)


def _fuse_norm(graph: ir.Graph, node: ir.Node) -> None:
    """Fuse x / sqrt(mean(x^2) + epsilon), and the product with a scale of x's last axis."""
    for x, root in _either(node):
        epsilon = _epsilon(x, root)
        if epsilon is None or not (shape := dims(x)) or not isinstance(shape[-1], int):
            continue
        scaled = _scaled(node.outputs[0], shape[-1])
        if scaled is None:
            result = node.outputs[0]
            scale = graph_constant(graph, f"scale of {result.name}", np.ones(shape[-1], np.float32))
        else:
            result, scale = scaled
        attributes = [ir.AttrInt64("axis", -1), ir.AttrFloat32("epsilon", epsilon)]
        _replace(graph, result, ir.Node("", "RMSNormalization", [x, scale], attributes=attributes))
        return


def _epsilon(x: ir.Value, root: ir.Value) -> float | None:
    """Return the epsilon of 1 / sqrt(mean(x^2) + epsilon); None for another value."""
    inverse = _producer(root, "Reciprocal")
    square_root = _producer(inverse.inputs[0], "Sqrt") if inverse else None
    added = _producer(square_root.inputs[0], "Add") if square_root else None
    for mean, epsilon in _either(added):
        node, number = _producer(mean, "ReduceMean"), _number(epsilon)
        if node is not None and number is not None and _is_last(node) and _is_square(node.inputs[0], x):
            return number
    return None


def _is_last(mean: ir.Node) -> bool:
    """Whether a mean is that of the last axis, which stays as one of size 1."""
    axes = constant(mean.inputs[1]) if len(mean.inputs) > 1 else None
    rank = len(dims(mean.outputs[0]) or ())
    keeps = "keepdims" not in mean.attributes or mean.attributes["keepdims"].as_int() == 1
    return keeps and rank > 0 and axes is not None and axes.ravel().tolist() in ([-1], [rank - 1])


def _is_square(value: ir.Value | None, x: ir.Value) -> bool:
    power, product = _producer(value, "Pow"), _producer(value, "Mul")
    if product is not None:
        return product.inputs[0] is x and product.inputs[1] is x
    return power is not None and power.inputs[0] is x and _number(power.inputs[1]) == 2


def _scaled(value: ir.Value, width: int) -> tuple[ir.Value, ir.Value] | None:
    """Return the one product of a value with a vector, and the vector; None where there is none."""
    user = _only_user(value, "Mul")
    for _, scale in (pair for pair in _either(user) if pair[0] is value):
        if scale.const_value is not None and dims(scale) == [width]:
            assert user is not None
            return user.outputs[0], scale
    return None


class _Angles(NamedTuple):
    """The factors of rotary positions, scale * cos and scale * sin of [f, f]: f and the scale."""

    angles: ir.Value
    scale: float


class _Turns:
    """The rotary positions of a graph: x * cos + [-x2, x1] * sin, where x = [x1, x2]."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._tables: dict[tuple[str, _Angles], ir.Value] = {}

    def fuse(self, node: ir.Node) -> None:
        """Fuse the positions that end in a sum."""
        for left, right in _either(node):
            for x, cos in _either(_producer(left, "Mul")):
                for half, sin in _either(_producer(right, "Mul")):
                    of_cos, of_sin = _angles(cos, "Cos"), _angles(sin, "Sin")
                    width = (dims(x) or [""])[-1]
                    if of_cos and of_cos == of_sin and isinstance(width, int) and _is_turned(half, x, width):
                        self._write(node.outputs[0], x, of_cos, width)
                        return

    def _write(self, result: ir.Value, x: ir.Value, angles: _Angles, width: int) -> None:
        """Write the operator, on [B,T,H*Dh] where the heads are split for the positions alone."""
        whole = _whole(result, x, width)
        attributes = [ir.AttrInt64("rotary_embedding_dim", width)] if whole else []
        result, x = whole or (result, x)
        joined = _joined(result)
        split = None if joined is None else self._split(x)
        if joined is not None and split is not None:
            heads = (dims(split) or [])[2]
            attributes.append(ir.AttrInt64("num_heads", int(heads)))
            x, result = self._packed(split, int((dims(joined) or [])[2])), joined
        tables = [self._table(kind, angles, result) for kind in ("Cos", "Sin")]
        _replace(self._graph, result, ir.Node("", "RotaryEmbedding", [x, *tables], attributes=attributes))

    def _split(self, x: ir.Value) -> ir.Value | None:
        """Return the [B,T,H,Dh] that x is a transposition of, or normalised behind it; None for another x."""
        norm = _producer(x, "RMSNormalization")
        turned = _producer(norm.inputs[0] if norm else x, "Transpose")
        if turned is None or _order(turned) != BY_HEADS or turned.inputs[0] is None:
            return None
        split = turned.inputs[0]
        if norm is None:
            return split
        node = ir.Node("", norm.op_type, [split, norm.inputs[1]], attributes=norm.attributes.values())
        node.outputs[0].shape, node.outputs[0].type = split.shape, split.type
        self._insert_behind(split, node)
        return node.outputs[0]

    def _packed(self, split: ir.Value, width: int) -> ir.Value:
        """Return the [B,T,H*Dh] that [B,T,H,Dh] is made of; make it where it is not there."""
        given = _producer(split, "Reshape")
        shape = dims(split) or []
        if given is not None and given.inputs[0] is not None and dims(given.inputs[0]) == [*shape[:2], width]:
            return given.inputs[0]
        target = graph_constant(self._graph, f"packed {split.name}", np.array([0, 0, width], np.int64))
        node = ir.Node("", "Reshape", [split, target])
        node.outputs[0].shape, node.outputs[0].type = ir.Shape([*shape[:2], width]), split.type
        self._insert_behind(split, node)
        return node.outputs[0]

    def _table(self, kind: str, angles: _Angles, before: ir.Value) -> ir.Value:
        """Return scale * cos f or scale * sin f, [B,T,Dh/2]; one for all positions of the graph."""
        if (kind, angles) not in self._tables:
            nodes = [ir.Node("", kind, [angles.angles])]
            if angles.scale != 1:
                scale = graph_constant(
                    self._graph, f"scale of {before.name} {kind}", np.array(angles.scale, np.float32)
                )
                nodes.append(ir.Node("", "Mul", [nodes[0].outputs[0], scale]))
            for node in nodes:
                node.outputs[0].shape, node.outputs[0].type = angles.angles.shape, angles.angles.type
            self._insert_behind(angles.angles, *nodes)
            self._tables[kind, angles] = nodes[-1].outputs[0]
        return self._tables[kind, angles]

    def _insert_behind(self, value: ir.Value, *nodes: ir.Node) -> None:
        producer = value.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], nodes)
        else:
            self._graph.insert_after(producer, nodes)


def _angles(value: ir.Value, kind: str) -> _Angles | None:
    """Return the angles of cos [f, f] or sin [f, f], [B,1,T,Dh], with a scale or none."""
    node = _producer(value, "Unsqueeze")
    axes = constant(node.inputs[1]) if node else None
    if node is None or axes is None or axes.ravel().tolist() not in ([1], [-3]):
        return None
    inner, scale = node.inputs[0], 1.0
    for factor, number in _either(_producer(inner, "Mul")):
        if (found := _number(number)) is not None:
            inner, scale = factor, found
            break
    wave = _producer(inner, kind)
    both = _producer(wave.inputs[0], "Concat") if wave else None
    if both is None or len(both.inputs) != 2 or both.inputs[0] is not both.inputs[1] or both.inputs[0] is None:
        return None
    angles = both.inputs[0]
    shape = dims(angles)
    is_last = both.attributes["axis"].as_int() in (-1, 2)
    return _Angles(angles, scale) if is_last and shape is not None and len(shape) == 3 else None


def _is_turned(value: ir.Value, x: ir.Value, width: int) -> bool:
    """Whether a value is [-x2, x1]."""
    node = _producer(value, "Concat")
    if node is None or len(node.inputs) != 2 or node.attributes["axis"].as_int() not in (-1, 3):
        return False
    negative = _producer(node.inputs[0], "Neg")
    half = width // 2
    return (
        width % 2 == 0
        and negative is not None
        and _range(negative.inputs[0], x) == (half, width)
        and _range(node.inputs[1], x) == (0, half)
    )


def _range(value: ir.Value | None, x: ir.Value) -> tuple[int, int] | None:
    """Return the range of x's last axis that a value is; None for another value."""
    node = _producer(value, "Slice")
    shape = dims(x)
    if node is None or node.inputs[0] is not x or not shape or not isinstance(shape[-1], int):
        return None
    given = [constant(each) for each in node.inputs[1:]]
    numbers = [each.ravel().tolist() for each in given if each is not None]
    if len(numbers) < 3 or numbers[2] not in ([-1], [len(shape) - 1]) or numbers[3:] not in ([], [[1]]):
        return None
    begin, end, _ = slice(numbers[0][0], numbers[1][0]).indices(shape[-1])
    return begin, end


def _whole(result: ir.Value, x: ir.Value, width: int) -> tuple[ir.Value, ir.Value] | None:
    """Return the whole result and input of which the first part alone has positions; None where all has."""
    part = _producer(x, "Slice")
    given = part.inputs[0] if part else None
    user = _only_user(result, "Concat")
    if given is None or user is None or _range(x, given) != (0, width) or len(user.inputs) != 2:
        return None
    full = (dims(given) or [""])[-1]
    is_rest = user.inputs[0] is result and isinstance(full, int) and _range(user.inputs[1], given) == (width, full)
    return (user.outputs[0], given) if is_rest and user.attributes["axis"].as_int() in (-1, 3) else None


def _joined(value: ir.Value) -> ir.Value | None:
    """Return [B,T,H*Dh] that is made of [B,H,T,Dh] alone; None where it is not."""
    turned = _only_user(value, "Transpose")
    packed = _only_user(turned.outputs[0], "Reshape") if turned is not None and _order(turned) == BY_HEADS else None
    shape, joined = dims(value), None if packed is None else packed.outputs[0]
    if joined is None or shape is None:
        return None
    heads, width = shape[1], shape[3]
    is_joined = (
        isinstance(heads, int) and isinstance(width, int) and dims(joined) == [shape[0], shape[2], heads * width]
    )
    return joined if is_joined else None


def _order(node: ir.Node) -> list[int]:
    return list(node.attributes["perm"].as_ints())


def _producer(value: ir.Value | None, operator: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == operator else None


def _only_user(value: ir.Value, operator: str) -> ir.Node | None:
    """Return the one node that reads a value, which is no result; None where there are more, or of another operator."""
    users = [use.node for use in value.uses()]
    is_only = len(users) == 1 and not value.is_graph_output()
    return users[0] if is_only and users[0].op_type == operator else None


def _either(node: ir.Node | None) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Yield both orders of the two inputs of a node; none without a node."""
    if node is not None and node.inputs[0] is not None and node.inputs[1] is not None:
        yield node.inputs[0], node.inputs[1]
        yield node.inputs[1], node.inputs[0]


def _number(value: ir.Value | None) -> float | None:
    """Return a constant of one number."""
    numbers = constant(value)
    return float(numbers.ravel()[0]) if numbers is not None and numbers.size == 1 else None


def _replace(graph: ir.Graph, result: ir.Value, node: ir.Node) -> None:
    """Compute a result by one node in the place of its own."""
    producer = result.producer()
    assert producer is not None
    graph.insert_before(producer, [node])
    made = node.outputs[0]
    made.name, made.shape, made.type = result.name, result.shape, result.type
    ir.convenience.replace_all_uses_with(result, made, replace_graph_outputs=True)
