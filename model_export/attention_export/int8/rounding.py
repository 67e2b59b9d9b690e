"""Quantization of a graph: its products with constant matrices are computed in 8 bits.

A matrix is rounded to 8 bits column by column, the left operand at run time row by row:

    x . M  ~  (round(127 x / max|x|) . round(64 M / max|M|)) * max|x| * max|M| / (127 * 64)

with max|x| of each row and max|M| of each column. Attention itself stays in float32. The scale is a row's maximum and
not the tensor's, as in onnxruntime's `quantize_dynamic`, so that a position's answer depends on no neighbour in a
batch, no hidden key and no later position. docs/quantization.md has the cost of both.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

from attention_export.graphs import strip

METHOD = "int8 matrices by column, 7 bits used; vectors by row, as they come"
BITS = 8
VECTOR_STEPS = 127
# Not 127: AVX2 without VNNI adds two products in 16 bits, which 255 * 64 * 2 fits and 255 * 127 * 2 does not.
MATRIX_STEPS = 64
ZERO_POINT = 128  # the kernels take unsigned vectors
SMALLEST = np.float32(1e-30)  # least maximum, so that a row of zeros divides by no zero

Array = NDArray[Any]


def to_int8(content: bytes) -> bytes:
    """Replace each product of an ONNX graph with a constant float32 matrix [in, out] by an 8-bit one.

    Raises:
        onnx.checker.ValidationError: the result is no valid ONNX model.
    """
    model = onnx.load_from_string(content)
    graph = model.graph
    matrices = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    nodes: list[NodeProto] = []
    added: dict[str, Array] = {}
    for node in graph.node:
        if node.op_type == "MatMul" and matrices.get(node.input[1], np.empty(0)).ndim == 2:
            nodes += _product(node, matrices[node.input[1]], added)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    _replace_constants(graph, added)
    strip(model)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def _product(node: NodeProto, matrix: Array, added: dict[str, Array]) -> Iterator[NodeProto]:
    """Yield the nodes of an 8-bit x [.., in] . matrix [in, out]; add the constants that these read to `added`."""
    x, name, result = node.input[0], node.input[1], node.output[0]
    largest = np.maximum(np.abs(matrix).max(0), SMALLEST)  # [out]
    added[f"{name}_int8"] = np.rint(matrix / largest * MATRIX_STEPS).astype(np.int8)
    added[f"{name}_step"] = (largest / (MATRIX_STEPS * VECTOR_STEPS)).astype(np.float32)
    added |= {
        "int8_last_axis": np.array([-1], np.int64),
        "int8_smallest": np.array(SMALLEST),
        "int8_step": np.array(1 / VECTOR_STEPS, np.float32),
        "int8_zero_point": np.array(ZERO_POINT, np.uint8),
    }
    # Two products with the same vectors share the rounding: onnxruntime merges equal nodes.
    yield _node("Abs", [x], f"{result}_abs")
    yield _node("ReduceMax", [f"{result}_abs", "int8_last_axis"], f"{result}_max", keepdims=1)
    yield _node("Max", [f"{result}_max", "int8_smallest"], f"{result}_largest")  # [.., 1]
    yield _node("Div", [x, f"{result}_largest"], f"{result}_scaled")
    yield _node("QuantizeLinear", [f"{result}_scaled", "int8_step", "int8_zero_point"], f"{result}_uint8")
    yield _node("MatMulInteger", [f"{result}_uint8", f"{name}_int8", "int8_zero_point"], f"{result}_int32")
    yield _node("Cast", [f"{result}_int32"], f"{result}_float", to=onnx.TensorProto.FLOAT)
    yield _node("Mul", [f"{result}_float", f"{name}_step"], f"{result}_by_column")
    yield _node("Mul", [f"{result}_by_column", f"{result}_largest"], result)


def _node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
    return onnx.helper.make_node(kind, inputs, [output], name=f"{output}_node", **attributes)


def _replace_constants(graph: onnx.GraphProto, added: dict[str, Array]) -> None:
    """Add constants to a graph; remove the unused ones."""
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in added.items())
    read = {name for node in graph.node for name in node.input}
    kept = [constant for constant in graph.initializer if constant.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
