"""Whether each row of a graph's results depends on one token alone, found by following the axis of the sequence.

An operator that is not known to keep rows apart counts as one that mixes rows: the answer may be wrong to the careful
side only.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import onnx_ir as ir

from attention_export.importing.transformer.clean import ELEMENTWISE, NORMS, constant, dims
from attention_export.importing.transformer.sides import ALONE, SOURCE

LENGTHS = {ALONE.length, SOURCE.length}  # names of dimensions


class Axis(NamedTuple):
    """The axis of a tensor along which the sequence lies."""

    rank: int
    axis: int

    @property
    def from_end(self) -> int:
        """The axis counted from the last one, which broadcasting keeps."""
        return self.rank - self.axis


class RowsMixedError(Exception):
    """An operator computes a row from several."""


Axes = dict[ir.Value, Axis]
Rule = Callable[[ir.Node, Axes], Axis]


def rows_depend(nodes: Iterable[ir.Node], inputs: Iterable[ir.Value], outputs: Iterable[ir.Value]) -> bool:
    """Return whether a row of an output may depend on further rows.

    Args:
        nodes: in order.
        inputs: [B,T] or [B,T,width].
        outputs: [B,T,width].
    """
    axes: Axes = {value: Axis(len(dims(value) or ()), 1) for value in inputs}
    try:
        for node in nodes:
            if node.op_type != "Shape" and any(value in axes for value in node.inputs):
                axis = RULES.get(node.op_type, _mixed)(node, axes)
                axes |= dict.fromkeys(node.outputs, axis)
    except RowsMixedError:
        return True
    return any(value in axes and axes[value] != Axis(3, 1) for value in outputs)


def _mixed(node: ir.Node, _: Axes) -> Axis:
    raise RowsMixedError(node.op_type)


def _rank(value: ir.Value | None) -> int:
    return len(value.shape) if value is not None and value.shape is not None else 0


def _elementwise(node: ir.Node, axes: Axes) -> Axis:
    found = {axes[value].from_end for value in node.inputs if value is not None and value in axes}
    if len(found) != 1:
        raise RowsMixedError(node.op_type)
    rank = max(axes[value].rank if value in axes else _rank(value) for value in node.inputs if value is not None)
    rank = max(rank, _rank(node.outputs[0]))
    return Axis(rank, rank - found.pop())


def _only(node: ir.Node, axes: Axes, index: int = 0) -> Axis:
    """Return the axis of one input, which has to be the only one that has rows."""
    value = node.inputs[index]
    if value is None or value not in axes or sum(each in axes for each in node.inputs) > 1:
        raise RowsMixedError(node.op_type)
    return axes[value]


def _matmul(node: ir.Node, axes: Axes) -> Axis:
    left, right = node.inputs
    index = 0 if left in axes else 1
    given = _only(node, axes, index)
    contracted = 1 if index == 0 else 2
    if given.from_end == contracted:
        raise RowsMixedError(node.op_type)
    rank = max(given.rank, _rank(right if index == 0 else left))
    return Axis(rank, rank - given.from_end)


def _attribute(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _normalized(node: ir.Node, axes: Axes) -> Axis:
    """Normalise over an axis and all behind it."""
    given = _only(node, axes)
    if given.axis >= _attribute(node, "axis", -1) % given.rank:
        raise RowsMixedError(node.op_type)
    return given


def _along_axis(node: ir.Node, axes: Axes) -> Axis:
    """Work along one axis, which is not the sequence's."""
    given = _elementwise(node, axes)
    if given.axis == _attribute(node, "axis", -1 if node.op_type in ("Softmax", "TopK") else 0) % given.rank:
        raise RowsMixedError(node.op_type)
    return given


def _constants(node: ir.Node, index: int, rank: int) -> list[int]:
    """Return axes given by a constant input; all if there is none."""
    if len(node.inputs) <= index or node.inputs[index] is None:
        return list(range(rank))
    numbers = constant(node.inputs[index])
    if numbers is None:
        raise RowsMixedError(node.op_type)
    return [int(number) % rank for number in numbers.ravel()]


def _reduced(node: ir.Node, axes: Axes) -> Axis:
    given = _only(node, axes)
    reduced = _constants(node, 1, given.rank)
    if given.axis in reduced:
        raise RowsMixedError(node.op_type)
    return given if _attribute(node, "keepdims", 1) else _without(given, reduced)


def _without(given: Axis, removed: list[int]) -> Axis:
    return Axis(given.rank - len(removed), given.axis - sum(each < given.axis for each in removed))


def _sliced(node: ir.Node, axes: Axes) -> Axis:
    given = _only(node, axes)
    if given.axis in _constants(node, 3, given.rank):
        raise RowsMixedError(node.op_type)
    return given


def _squeezed(node: ir.Node, axes: Axes) -> Axis:
    given = _only(node, axes)
    return _without(given, _constants(node, 1, given.rank))


def _unsqueezed(node: ir.Node, axes: Axes) -> Axis:
    given = _only(node, axes)
    numbers = constant(node.inputs[1])
    if numbers is None:
        raise RowsMixedError(node.op_type)
    rank = given.rank + numbers.size
    added = {int(number) % rank for number in numbers.ravel()}
    kept = [axis for axis in range(rank) if axis not in added]
    return Axis(rank, kept[given.axis])


def _transposed(node: ir.Node, axes: Axes) -> Axis:
    given = _only(node, axes)
    return Axis(given.rank, list(node.attributes["perm"].as_ints()).index(given.axis))


def _reshaped(node: ir.Node, axes: Axes) -> Axis:
    """Find the sequence again where as much stands before it as did."""
    given = _only(node, axes)
    before, behind = dims(node.inputs[0]) if node.inputs[0] else None, dims(node.outputs[0])
    if before is None or behind is None:
        raise RowsMixedError(node.op_type)
    lengths = LENGTHS.intersection(_factors(before[given.axis]))
    found = [axis for axis, size in enumerate(behind) if lengths.intersection(_factors(size))]
    if len(found) != 1 or _size(before[: given.axis + 1]) != _size(behind[: found[0] + 1]):
        raise RowsMixedError(node.op_type)
    return Axis(len(behind), found[0])


def _factors(size: int | str) -> list[str]:
    """Return the factors of a dimension, such as `B*T`: the rows of all sequences."""
    return str(size).split("*")


def _size(shape: list[int | str]) -> tuple[int, list[str]]:
    """Return the product of numbers, and the names of dimensions."""
    factors = [factor for size in shape for factor in _factors(size)]
    return math.prod(int(each) for each in factors if each.isdigit()), sorted(x for x in factors if not x.isdigit())


def _one_hot(node: ir.Node, axes: Axes) -> Axis:
    given = _only(node, axes)
    if _attribute(node, "axis", -1) not in (-1, given.rank):
        raise RowsMixedError(node.op_type)
    return Axis(given.rank + 1, given.axis)


def _gathered(node: ir.Node, axes: Axes) -> Axis:
    data, indices = node.inputs
    assert data is not None
    assert indices is not None
    rank = axes[data].rank if data in axes else _rank(data)
    axis = _attribute(node, "axis", 0) % max(rank, 1)
    if indices in axes:
        given = _only(node, axes, 1)
        return Axis(rank + given.rank - 1, axis + given.axis)
    given = _only(node, axes)
    if given.axis == axis:
        raise RowsMixedError(node.op_type)
    width = _rank(indices)
    return Axis(rank - 1 + width, given.axis + (width - 1 if axis < given.axis else 0))


RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(NORMS, _normalized),
    **dict.fromkeys(["Concat", "Split", "Softmax", "TopK"], _along_axis),
    **dict.fromkeys(["ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare"], _reduced),
    "Gather": _gathered,
    "MatMul": _matmul,
    "OneHot": _one_hot,
    "Reshape": _reshaped,
    "Slice": _sliced,
    "Squeeze": _squeezed,
    "Transpose": _transposed,
    "Unsqueeze": _unsqueezed,
}
