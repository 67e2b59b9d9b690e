"""The bytes of tensors in an ONNX file, whatever stands around them."""

import numpy as np
import pytest
from attention_server.repository.graph_bytes import tensor_bytes
from onnx import TensorProto, helper, numpy_helper


def graph_of(arrays, nodes=()):
    tensors = [numpy_helper.from_array(array, str(i)) for i, array in enumerate(arrays)]
    return helper.make_graph(list(nodes), "graph", [], [], tensors)


def test_raw_tensors_and_those_of_attributes():
    """Initializers, constants, and the tensors of subgraphs count, with the bytes of their elements."""
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.zeros(3)))
    branch = graph_of([np.zeros(7, np.float16)])
    choice = helper.make_node("If", ["c"], ["d"], then_branch=branch, else_branch=graph_of([]))
    model = helper.make_model(graph_of([np.zeros((3, 5), np.float32), np.zeros(2, np.int64)], [constant, choice]))
    assert tensor_bytes(model.SerializeToString()) == 60 + 16 + 24 + 14


def test_typed_elements_count_as_they_are_encoded():
    """Elements that are not raw are counted as they stand in the file."""
    tensor = helper.make_tensor("x", TensorProto.FLOAT, [4], [1.0, 2.0, 3.0, 4.0])
    graph = helper.make_graph([], "graph", [], [], [tensor])
    assert tensor_bytes(helper.make_model(graph).SerializeToString()) == 16


def test_an_empty_file_and_one_cut_short():
    """No bytes are no tensors; a file that ends within a field is refused in words."""
    assert tensor_bytes(b"") == 0
    content = helper.make_model(graph_of([np.zeros(9)])).SerializeToString()
    for broken in (b"\x08", b"\x80", b"\x0f"):
        with pytest.raises(ValueError, match="is no ONNX file"):
            tensor_bytes(broken)
    assert tensor_bytes(content) == 72
