"""Passes over a traced graph that remove nodes needed by the tracing alone.

Some models put the rows of all sequences below each other for a product, [B*T,width]; the passes compute it on
[B,T,width], where each row is a row of a sequence.

Reshapes take their shape from the tokens' shape, and the packing of q, k and v adds reshapes and transpositions that
cancel those of the model. Without these passes every segment would need the tokens.
"""

import itertools
from collections.abc import Callable, Container, Iterable

import numpy as np
import onnx_ir as ir
from onnxscript import optimizer
from torch._subclasses.fake_tensor import FakeTensor

from attention_export.importing import ImportFailure
from attention_export.importing.transformer.sides import ALONE, SOURCE
from attention_export.importing.transformer.trace import BATCH

Shape = list[int | str]

UNLIMITED = 2**62
ELEMENTWISE = (
    *("Abs", "Add", "And", "Cast", "CastLike", "Ceil", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Expand"),
    *("Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "IsNaN", "LeakyRelu"),
    *("Less", "LessOrEqual", "Log", "Max", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow"),
    *("Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Swish"),
    *("Tanh", "Where", "Xor"),
)
NORMS = ("LayerNormalization", "RMSNormalization")
SIZES: dict[tuple[int | str, ...], tuple[int, int]] = {(BATCH,): (0, 1)}
for _side in (ALONE, SOURCE):
    SIZES |= {(_side.length,): (1, 2), (BATCH, _side.length): (0, 2)}
"""The axes of a tensor [B,T,..] that have sizes, from the first to before the last."""


def clean(model: ir.Model) -> None:
    """Clean a traced graph in place: fold constants, fix the shapes of reshapes, remove pairs that cancel."""
    fold(model)
    passes: list[Callable[[ir.Graph, ir.Node], bool]] = [
        _skip_identity,
        _keep_sequences,
        _fix_shape,
        _merge_reshapes,
        _merge_transposes,
    ]
    changed = True
    while changed:
        changed = sum(each(model.graph, node) for each in passes for node in list(model.graph)) > 0
    remove_unused(model.graph)
    for node in list(model.graph):
        if node.op_type == "Shape":
            _measure(model.graph, node)


def _measure(graph: ir.Graph, node: ir.Node) -> None:
    """Let a node that reads sizes read the same ones of a tensor [B,T,..], which each segment has.

    Raises:
        ImportFailure: a size is neither constant nor the batch's or the sequence's.
    """
    given = node.inputs[0]
    assert given is not None
    start, end = (node.attributes[name].as_int() if name in node.attributes else None for name in ("start", "end"))
    shape = (dims(given) or [])[start:end]
    runs = [(named, list(run)) for named, run in itertools.groupby(shape, lambda size: isinstance(size, str))]
    if not runs or any(named and tuple(run) not in SIZES for named, run in runs):
        raise ImportFailure(f"the model reads sizes of {given.name} inside, {shape}; [B, T, width] was expected")
    result = node.outputs[0]
    nodes, parts = [], []
    for number, (named, run) in enumerate(runs):
        if named:
            start, end = SIZES[tuple(run)]
            attributes = [ir.AttrInt64("start", start), ir.AttrInt64("end", end)]
            tokens = next(value for value in graph.inputs if set(run) <= set(dims(value) or []))
            nodes.append(ir.Node("", "Shape", [tokens], attributes=attributes))
            parts.append(nodes[-1].outputs[0])
        else:
            parts.append(graph_constant(graph, f"{result.name}_widths_{number}", np.array(run, np.int64)))
    if len(parts) > 1:
        nodes.append(ir.Node("", "Concat", parts, attributes=[ir.AttrInt64("axis", 0)]))
    graph.insert_before(node, nodes)
    ir.convenience.replace_all_uses_with(result, nodes[-1].outputs[0] if nodes else parts[0])
    graph.remove(node, safe=True)


def fold(model: ir.Model) -> None:
    """Evaluate nodes of constant inputs; parameters without values are no constants."""
    fakes = [(value, value.const_value) for value in model.graph.initializers.values() if is_fake(value)]
    for value, _ in fakes:
        value.const_value = None
    optimizer.fold_constants(model, onnx_shape_inference=False, input_size_limit=UNLIMITED, output_size_limit=UNLIMITED)
    for value, tensor in fakes:
        value.const_value = tensor


def is_fake(value: ir.Value) -> bool:
    """Whether a value is a parameter without numbers; the source reads these."""
    return isinstance(getattr(value.const_value, "raw", None), FakeTensor)


def remove_unused(graph: ir.Graph) -> None:
    """Remove nodes and initializers that no output depends on."""
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]


def dims(value: ir.Value) -> Shape | None:
    """Return a value's shape: numbers, and names of dimensions; None if it is not known."""
    if value.shape is None:
        return None
    return [each if isinstance(each, int) else str(each.value) for each in value.shape]


def constant(value: ir.Value | None) -> np.ndarray | None:
    """Return a small constant's numbers; None if the value is computed, or a parameter."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None or tensor.size > 1024 else tensor.numpy()


def _skip_identity(_: ir.Graph, node: ir.Node) -> bool:
    return node.op_type == "Identity" and _bypass(node)


def _bypass(node: ir.Node) -> bool:
    """Let users of a node's result use its input."""
    result, given = node.outputs[0], node.inputs[0]
    assert given is not None
    if not result.uses() and not result.is_graph_output():
        return False
    if given.shape is None:
        given.shape, given.type = result.shape, result.type
    ir.convenience.replace_all_uses_with(result, given, replace_graph_outputs=True)
    return True


def _fix_shape(graph: ir.Graph, node: ir.Node) -> bool:
    """Make the shape of a reshape constant: 0 copies a dimension that stays where it is, -1 is the one that is left."""
    if node.op_type != "Reshape" or node.inputs[1] is None or constant(node.inputs[1]) is not None:
        return False
    given, result = dims(node.inputs[0]), dims(node.outputs[0])  # type: ignore[arg-type] # a reshape has an input
    if given is None or result is None:
        return False
    kept = [isinstance(size, str) and given[axis : axis + 1] == [size] for axis, size in enumerate(result)]
    if sum(isinstance(size, str) and not same for size, same in zip(result, kept, strict=True)) > 1:
        return False
    shape = [0 if same else (-1 if isinstance(size, str) else size) for size, same in zip(result, kept, strict=True)]
    name = f"{node.outputs[0].name}_shape"
    node.replace_input_with(1, graph_constant(graph, name, np.array(shape, np.int64)))
    node.attributes.pop("allowzero", None)
    return True


def graph_constant(graph: ir.Graph, name: str, numbers: np.ndarray) -> ir.Value:
    """Add an initializer."""
    tensor = ir.tensor(numbers, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(numbers.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def _merge_reshapes(_: ir.Graph, node: ir.Node) -> bool:
    """Skip a reshape to the shape that is there; let one behind another start from the first one's input."""
    if node.op_type != "Reshape":
        return False
    given = node.inputs[0]
    assert given is not None
    shape = dims(node.outputs[0])
    if shape is not None and shape == dims(given):
        return _bypass(node)
    before = given.producer()
    if before is None or before.op_type != "Reshape" or before.inputs[0] is None:
        return False
    first, target = dims(before.inputs[0]), constant(node.inputs[1])
    if first is None or shape is None or (first != shape and not _copies(target, first, shape)):
        return False
    node.replace_input_with(0, before.inputs[0])
    return True


def _copies(target: np.ndarray | None, given: Shape, shape: Shape) -> bool:
    """Whether a constant target of a reshape gives a shape; a copied dimension has the same axis in both shapes."""
    if target is None:
        return False
    return all(given[axis : axis + 1] == [shape[axis]] for axis, size in enumerate(target) if size == 0)


def _keep_sequences(graph: ir.Graph, node: ir.Node) -> bool:
    """Compute on [B,T,width] what a node computes row by row on [B*T,width], and put the rows together behind it."""
    flat = [value for value in node.inputs if value is not None and _sequences(value) is not None]
    others = [value for value in node.inputs if value is not None and value not in flat]
    result = node.outputs[0]
    shape = dims(result)
    if not flat or shape is None or len(node.outputs) > 1 or not all(map(_is_parameter, others)):
        return False
    if result.is_graph_output() or not result.uses():
        return False
    given = [value if value is None else _sequences(value) or value for value in node.inputs]
    if node.op_type == "Gemm":
        nodes = _product(node, given)
    elif node.op_type in ELEMENTWISE or (node.op_type == "MatMul" and node.inputs[0] in flat):
        nodes = [ir.Node("", node.op_type, given, attributes=node.attributes.values())]
    elif node.op_type in NORMS and node.attributes["axis"].as_int() in (-1, 1):
        axis = ir.AttrInt64("axis", -1)
        nodes = [ir.Node("", node.op_type, given, attributes=(dict(node.attributes) | {"axis": axis}).values())]
    else:
        return False
    if not nodes:
        return False
    whole = _sequences(flat[0])
    assert whole is not None
    assert whole.shape is not None
    for each in nodes:
        each.outputs[0].shape, each.outputs[0].type = ir.Shape([*whole.shape[:2], shape[-1]]), result.type
    target = graph_constant(graph, f"{result.name}_rows", np.array([-1, shape[-1]], np.int64))
    nodes.append(ir.Node("", "Reshape", [nodes[-1].outputs[0], target]))
    graph.insert_before(node, nodes)
    rows = nodes[-1].outputs[0]
    rows.shape, rows.type, rows.name = result.shape, result.type, f"{result.name}_of_rows"
    ir.convenience.replace_all_uses_with(result, rows)
    graph.remove(node, safe=True)
    return True


def _sequences(value: ir.Value) -> ir.Value | None:
    """Return the tensor [B,T,width] whose rows [B*T,width] a reshape has put below each other; None else."""
    node = value.producer()
    if node is None or node.op_type != "Reshape" or node.inputs[0] is None:
        return None
    before, behind = dims(node.inputs[0]), dims(value)
    if before is None or behind is None or before[:1] != [BATCH] or len(before) != 3 or len(behind) != 2:
        return None
    return node.inputs[0] if behind == [f"{BATCH}*{before[1]}", before[2]] else None


def _product(node: ir.Node, given: list[ir.Value | None]) -> list[ir.Node]:
    """Return x.M + b in place of ONNX's Gemm, which takes no sequences; nothing where it is more than that."""
    factors = [node.attributes[name].as_float() for name in ("alpha", "beta") if name in node.attributes]
    turned = [name in node.attributes and node.attributes[name].as_int() for name in ("transA", "transB")]
    x, matrix, *bias = given
    if set(factors) - {1.0} or turned[0] or node.inputs[0] is x:
        return []
    nodes = []
    if turned[1]:
        nodes.append(ir.Node("", "Transpose", [matrix], attributes=[ir.AttrInt64s("perm", [1, 0])]))
        matrix = nodes[-1].outputs[0]
    nodes.append(ir.Node("", "MatMul", [x, matrix]))
    if bias and bias[0] is not None:
        nodes.append(ir.Node("", "Add", [nodes[-1].outputs[0], bias[0]]))
    return nodes


def _is_parameter(value: ir.Value) -> bool:
    """Whether a value is a parameter or a constant of at most two axes, of which no rows are made."""
    return (value.is_initializer() or constant(value) is not None) and len(dims(value) or ()) <= 2


def _merge_transposes(_: ir.Graph, node: ir.Node) -> bool:
    """Make two transpositions one, and none of it where nothing moves."""
    if node.op_type != "Transpose" or node.inputs[0] is None:
        return False
    order = _order(node)
    if order == sorted(order):
        return _bypass(node)
    before = node.inputs[0].producer()
    if before is None or before.op_type != "Transpose":
        return False
    first = _order(before)
    node.attributes["perm"] = ir.AttrInt64s("perm", [first[axis] for axis in order])
    node.replace_input_with(0, before.inputs[0])
    return True


def _order(node: ir.Node) -> list[int]:
    return list(node.attributes["perm"].as_ints())


def ancestors(values: Iterable[ir.Value], stop: Callable[[ir.Value], bool]) -> set[ir.Value]:
    """Return values and all ancestors; a value at which `stop` is true hides its own ancestors."""
    found: set[ir.Value] = set()
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if value in found:
            continue
        found.add(value)
        node = None if stop(value) else value.producer()
        waiting += [each for each in (node.inputs if node is not None else ()) if each is not None]
    return found


def nodes_between(results: Iterable[ir.Value], given: Container[ir.Value]) -> list[ir.Node]:
    """Return the nodes that results are computed with, in an order that depends on the results alone.

    The order of the traced graph would not do: a constant stands where it is used first, in another segment.
    """
    order: dict[ir.Node, None] = {}
    waiting = [(value, False) for value in reversed(list(results))]
    while waiting:
        value, ready = waiting.pop()
        node = None if value in given else value.producer()
        if node is None or node in order:
            continue
        if ready:
            order[node] = None
            continue
        waiting.append((value, True))
        if node.op_type != "Shape":  # sizes are taken from an input
            waiting += [(each, False) for each in reversed(node.inputs) if each is not None]
    return list(order)
