"""One graph between two sites, written as ONNX with its values when it is called for."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from attention_export.graphs import OPSET
from attention_export.importing import ImportFailure
from attention_export.importing.transformer.clean import dims, fold, graph_constant, is_fake, remove_unused
from attention_export.importing.transformer.fuse import fuse
from attention_export.importing.transformer.sides import SOURCE, TARGET
from attention_export.importing.transformer.trace import PREFIX

IR_VERSION = 10
MOST_BYTES = 2**31 - 2**20  # of matrices in a file: a protobuf message of 2 GiB is not read, and nodes need some too
PACK_PROJECTIONS = True  # one MatMul for the projections of one input

Values = Callable[[str], np.ndarray]
"""Returns a parameter's numbers by name."""


@dataclass(frozen=True)
class Segment:
    """A part of a traced graph, as a graph of its own.

    Attributes:
        name: said in errors.
        nodes: of the traced graph, in order.
        inputs: given tensors of the traced graph, by name.
        outputs: tensors by the names that results have.
        measure: the input from which the batch's and the sequence's size are read.
        values: of parameters.
        rows: whether rows [N,D] are given in place of sequences [B,T,D], and results are [N,width].
    """

    name: str
    nodes: tuple[ir.Node, ...]
    inputs: dict[ir.Value, str]
    outputs: dict[str, ir.Value]
    measure: ir.Value
    values: Values = field(repr=False)
    rows: bool = False

    def parameters(self) -> Iterator[ir.Value]:
        """Yield the initializers that are read, each once."""
        yield from dict.fromkeys(v for node in self.nodes for v in node.inputs if v is not None and v.is_initializer())

    def check_size(self) -> None:
        """Raise if the file would be larger than a protobuf message can be.

        Raises:
            ImportFailure: it would.
        """
        size = sum(
            int(np.prod(v.const_value.shape.numpy())) * 4 for v in self.parameters() if v.const_value is not None
        )
        if size > MOST_BYTES:
            raise ImportFailure(
                f"{self.name} has {size / 2**30:.1f} GiB of parameters; a file of ONNX has less than 2 GiB. A model "
                "with a smaller vocabulary, or narrower, can be imported"
            )

    def __call__(self) -> bytes:
        """Read the parameters and return the file; the same bytes each time, and for equal segments."""
        graph = self._graph()
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="attention-export")
        fold(model)
        remove_unused(graph)
        fuse(graph)
        if PACK_PROJECTIONS:
            pack_projections(graph)
            remove_unused(graph)
        _share_constants(graph)
        _name_length(graph)
        _name(graph)
        return bytes(ir.to_proto(model).SerializeToString(deterministic=True))

    def _graph(self) -> ir.Graph:
        """Clone the nodes and parameters."""
        graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="segment")
        clones: dict[ir.Value, ir.Value] = {}
        for value, name in self.inputs.items():
            clones[value] = ir.Value(name=name, type=value.type, shape=value.shape)
            graph.inputs.append(clones[value])
        if self.rows:
            self._take_rows(graph, clones)
        for node in self.nodes:
            if _turns_parameter(node):
                clones[node.outputs[0]] = self._parameter(graph, node.inputs[0], node)
                continue
            if node.op_type == "Constant":
                clones[node.outputs[0]] = graph_constant(graph, f"constant {len(clones)}", _tensor(node))
                continue
            given: Sequence[ir.Value | None] = [self.measure] if node.op_type == "Shape" else node.inputs
            for each in given:
                if each is not None and each.is_initializer() and each not in clones:
                    clones[each] = self._parameter(graph, each)
            clone = ir.Node(
                node.domain,
                node.op_type,
                [None if each is None else clones[each] for each in given],
                attributes=node.attributes.values(),
                num_outputs=len(node.outputs),
            )
            graph.append(clone)
            for old, new in zip(node.outputs, clone.outputs, strict=True):
                new.shape, new.type, clones[old] = old.shape, old.type, new
                new.name = f"result {len(clones)}"  # unlike a constant's, which folding would meet
        self._add_outputs(graph, clones)
        return graph

    def _take_rows(self, graph: ir.Graph, clones: dict[ir.Value, ir.Value]) -> None:
        """Make each row of the input a sequence of one."""
        ((value, rows),) = clones.items()
        width = dims(value)[-1]  # type: ignore[index] # a hidden state has a shape
        rows.shape = ir.Shape(["N", width])
        axis = graph_constant(graph, "sequence_axis", np.array([1], np.int64))
        clones[value] = _append(graph, "Unsqueeze", [rows, axis])

    def _add_outputs(self, graph: ir.Graph, clones: dict[ir.Value, ir.Value]) -> None:
        for name, value in self.outputs.items():
            result = clones[value]
            if self.rows:
                width = dims(value)[-1]  # type: ignore[index] # logits have a shape
                result = _append(
                    graph, "Reshape", [result, graph_constant(graph, "row", np.array([-1, width], np.int64))]
                )
                result.shape = ir.Shape(["N", width])
            elif result.is_graph_output() or result.is_graph_input():
                result = _append(graph, "Identity", [result])
                result.shape = value.shape
            result.type = value.type
            result.name = name
            graph.outputs.append(result)

    def _parameter(self, graph: ir.Graph, value: ir.Value | None, turned: ir.Node | None = None) -> ir.Value:
        """Add a parameter, or constant, with its numbers; transposed by a node."""
        assert value is not None
        assert value.name is not None
        assert value.const_value is not None
        numbers = self.values(value.name.removeprefix(PREFIX)) if is_fake(value) else value.const_value.numpy()
        name = value.name.removeprefix(PREFIX)
        if turned is not None:
            numbers = numbers.transpose(list(turned.attributes["perm"].as_ints()))
        if name in graph.initializers:
            name += ".turned"
        if name in graph.initializers:
            return graph.initializers[name]
        return graph_constant(graph, name, np.ascontiguousarray(numbers).reshape(numbers.shape))


def _turns_parameter(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and node.inputs[0] is not None and node.inputs[0].is_initializer()


def _tensor(node: ir.Node) -> np.ndarray:
    tensor = ir.convenience.get_const_tensor(node.outputs[0])
    assert tensor is not None
    return tensor.numpy()


def _append(graph: ir.Graph, operator: str, inputs: list[ir.Value]) -> ir.Value:
    node = ir.Node("", operator, inputs)
    graph.append(node)
    return node.outputs[0]


@dataclass(frozen=True)
class _Projection:
    """x.M + b, or x.M."""

    product: ir.Node
    result: ir.Value
    matrix: ir.Value
    bias: ir.Value | None


def pack_projections(graph: ir.Graph) -> None:
    """Compute projections of one input by one MatMul and a Split."""
    by_input: dict[ir.Value, list[_Projection]] = {}
    for node in graph:
        if (projection := _projection(node)) is not None:
            by_input.setdefault(node.inputs[0], []).append(projection)  # type: ignore[arg-type] # MatMul has two inputs
    for given, projections in by_input.items():
        if len(projections) > 1:
            _pack(graph, given, projections)


def _projection(node: ir.Node) -> _Projection | None:
    if node.op_type != "MatMul" or node.inputs[0] is None or node.inputs[1] is None:
        return None
    matrix = node.inputs[1]
    if matrix.const_value is None or len(matrix.const_value.shape) != 2 or node.inputs[0].const_value is not None:
        return None
    users = [use.node for use in node.outputs[0].uses()]
    if len(users) == 1 and users[0].op_type == "Add" and not node.outputs[0].is_graph_output():
        (bias,) = [value for value in users[0].inputs if value is not node.outputs[0]] or [None]
        if bias is not None and bias.const_value is not None and len(bias.const_value.shape) == 1:
            return _Projection(node, users[0].outputs[0], matrix, bias)
    return _Projection(node, node.outputs[0], matrix, None)


def _pack(graph: ir.Graph, given: ir.Value, projections: list[_Projection]) -> None:
    first = projections[0].product
    name = projections[0].matrix.name or "packed"
    widths = [_numbers(each.matrix).shape[1] for each in projections]
    matrix = np.concatenate([_numbers(each.matrix) for each in projections], axis=1)
    nodes = [ir.Node("", "MatMul", [given, graph_constant(graph, f"{name}.packed", matrix)])]
    if any(each.bias is not None for each in projections):
        biases = [
            np.zeros(width, matrix.dtype) if each.bias is None else _numbers(each.bias)
            for each, width in zip(projections, widths, strict=True)
        ]
        bias = graph_constant(graph, f"{name}.packed_bias", np.concatenate(biases))
        nodes.append(ir.Node("", "Add", [nodes[-1].outputs[0], bias]))
    sizes = graph_constant(graph, f"{name}.packed_widths", np.array(widths, np.int64))
    axis = [ir.AttrInt64("axis", -1)]
    nodes.append(ir.Node("", "Split", [nodes[-1].outputs[0], sizes], attributes=axis, num_outputs=len(widths)))
    graph.insert_before(first, nodes)
    for each, part in zip(projections, nodes[-1].outputs, strict=True):
        part.name, part.shape, part.type = each.result.name, each.result.shape, each.result.type
        ir.convenience.replace_all_uses_with(each.result, part, replace_graph_outputs=True)


def _numbers(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()


def _share_constants(graph: ir.Graph) -> None:
    """Keep one of initializers that are equal."""
    kept: dict[tuple[object, ...], ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        numbers = _numbers(value)
        same = kept.setdefault((numbers.dtype.str, numbers.shape, hash(numbers.tobytes())), value)
        if same is not value and np.array_equal(_numbers(same), numbers, equal_nan=numbers.dtype.kind == "f"):
            ir.convenience.replace_all_uses_with(value, same)
            del graph.initializers[name]


def _name_length(graph: ir.Graph) -> None:
    """Name the length of an encoder's sequences as a decoder's, so that embeddings that both share are equal bytes."""
    for value in (*graph.inputs, *(result for node in graph for result in node.outputs)):
        if (shape := dims(value)) is not None:
            value.shape = ir.Shape([TARGET.length if size == SOURCE.length else size for size in shape])


def _name(graph: ir.Graph) -> None:
    """Name nodes and tensors by order, so that equal segments are equal bytes."""
    named = {*graph.inputs, *graph.outputs}
    for index, node in enumerate(graph):
        node.name = f"node_{index}"
        for number, value in enumerate(node.outputs):
            if value not in named:
                value.name = f"value_{index}_{number}"
    for index, value in enumerate(list(graph.initializers.values())):
        assert value.name is not None
        if "." not in value.name:  # no parameter's name
            del graph.initializers[value.name]
            value.name = f"constant_{index}"
            graph.register_initializer(value)
