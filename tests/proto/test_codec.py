"""Arrays to the wire and back."""

import math

import numpy as np
import pytest
from attention_proto import codec
from attention_proto.attention.v1 import attention_pb2 as pb
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

bounded = settings(deadline=None, derandomize=True)
ARRAYS = st.sampled_from(list(codec.DTYPES.values())).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4))
)


@bounded
@given(ARRAYS)
def test_round_trip(array):
    """Every written tensor is read: type, shape and every bit."""
    message = pb.Tensor.FromString(codec.encode(array).SerializeToString())
    read = codec.decode(message)
    assert (read.dtype, read.shape) == (array.dtype, array.shape)
    assert read.tobytes() == array.tobytes()


@bounded
@given(ARRAYS.filter(lambda array: array.ndim > 1))
def test_views_are_written_in_order(array):
    """An array that does not lie in order is written as if it did."""
    np.testing.assert_array_equal(codec.decode(codec.encode(array.T)), array.T)


@bounded
@given(
    st.sampled_from(list(codec.DTYPES)),
    st.lists(st.one_of(st.integers(-3, 5), st.integers(-(2**63), 2**63 - 1)), max_size=4),
    st.binary(max_size=64),
)
def test_whatever_comes(name, shape, data):
    """Any type, shape and bytes give an array that holds exactly these bytes, or a ValueError: never anything else."""
    try:
        array = codec.from_bytes(name, shape, data)
    except ValueError:
        return
    assert list(array.shape) == shape
    assert math.prod(shape) * array.itemsize == len(data)


@pytest.mark.parametrize("data_type", [0, 7, 99, -1])
def test_unknown_types(data_type):
    """A type that is none is a ValueError that names those there are."""
    with pytest.raises(ValueError, match="FP32"):
        codec.decode(pb.Tensor(data_type=data_type, shape=[1], data=b"\0" * 4))


@pytest.mark.parametrize("dtype", [np.float64, np.int8, np.complex64, "U1", object])
def test_arrays_without_a_form(dtype):
    """An array of a type that the wire does not have is a ValueError."""
    with pytest.raises(ValueError, match="dtype"):
        codec.encode(np.zeros(1, dtype))


def test_every_type_of_the_contract():
    """The codec knows each data type of the contract by its name, at its size."""
    names = {name.removeprefix("DATA_TYPE_") for name in map(str, pb.DataType.keys())} - {"UNSPECIFIED"}
    assert names == set(codec.DTYPES)
    sizes = {"BOOL": 1, "UINT16": 2, "INT32": 4, "INT64": 8, "FP16": 2, "FP32": 4}
    assert {name: dtype.itemsize for name, dtype in codec.DTYPES.items()} == sizes


def test_reading_copies_nothing():
    """A tensor is read in place, and cannot be written to."""
    data = np.arange(4, dtype="<f4").tobytes()
    array = codec.from_bytes("FP32", [2, 2], data)
    assert not array.flags.owndata
    assert not array.flags.writeable
