"""Graphs in another precision: float64 for the reference, float16 for a trial of half precision."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

Arrays = Mapping[str, NDArray[Any]]


def retype(content: bytes, data_type: int) -> onnx.ModelProto:
    """Return a graph with every float32 tensor in another type of floating point, its inputs and outputs too.

    Args:
        content: an ONNX file.
        data_type: `TensorProto.DOUBLE` or `TensorProto.FLOAT16`.
    """
    model = onnx.load_from_string(content)
    for tensor in model.graph.initializer:
        _retype_tensor(tensor, data_type)
    for node in model.graph.node:
        _retype_attributes(node, data_type)
    for info in (*model.graph.input, *model.graph.output):
        if info.type.tensor_type.elem_type == TensorProto.FLOAT:
            info.type.tensor_type.elem_type = data_type
    del model.graph.value_info[:]  # types of tensors between, which are inferred anew
    return model


def _retype_attributes(node: NodeProto, data_type: int) -> None:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR:
            _retype_tensor(attribute.t, data_type)
        elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = data_type


def _retype_tensor(tensor: TensorProto, data_type: int) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        numbers = numpy_helper.to_array(tensor).astype(onnx.helper.tensor_dtype_to_np_dtype(data_type))
        tensor.CopyFrom(numpy_helper.from_array(numbers, tensor.name))


def cast(feeds: Arrays, dtype: type[np.floating[Any]]) -> Arrays:
    """Return inputs with floating-point numbers in another type."""
    return {name: x.astype(dtype) if np.issubdtype(x.dtype, np.floating) else x for name, x in feeds.items()}


def reference(content: bytes, feeds: Arrays) -> Arrays:
    """Compute a graph in float64 by ONNX's reference implementation, in NumPy."""
    evaluator = ReferenceEvaluator(retype(content, TensorProto.DOUBLE))
    return dict(zip(evaluator.output_names, evaluator.run(None, dict(cast(feeds, np.float64))), strict=True))


def relative_error(found: Arrays, expected: Arrays) -> float:
    """Return the largest |difference| of an output as a share of its largest |number|; infinity for NaN or a shape."""
    worst = 0.0
    for name, stage in found.items():
        if stage.shape != expected[name].shape:
            return np.inf
        difference = np.abs(stage.astype(np.float64) - expected[name]).max(initial=0.0)
        share = difference / max(np.abs(expected[name]).max(initial=0.0), 1e-6)
        worst = max(worst, float(share) if np.isfinite(share) else np.inf)
    return worst
