"""Requests: the sequences that are packed into one input, and the fields of errors."""

import numpy as np
import pytest
from attention_client import InvalidRequest, Sequence
from attention_client.streaming.batcher import Batch
from attention_client.wire.request import attend_request, create_memory_request, packed_request
from attention_proto import codec
from attention_proto.attention.v1 import attention_pb2 as pb

DRAWN = np.random.default_rng(5)


def vectors(length, width=4, dtype=np.float32):
    return DRAWN.standard_normal((length, width)).astype(dtype)


def test_neighbours_are_packed():
    """Adjacent bare arrays of one type and width are packed into one input; each further sequence is an input."""
    long = DRAWN.standard_normal((8, 6)).astype(np.float32)
    given = [
        vectors(3),
        vectors(1),
        long[::2, ::-1][:, :4],  # not as it lies in memory
        vectors(2, 5),
        "a text",
        "another",
        Sequence(query=vectors(2), causal="top_left"),
        vectors(2, dtype=np.float16),
        vectors(1, dtype=np.float16),
        vectors(2),
        [[1, 2, 3, 4], [5, 6, 7, 8]],
        vectors(2, dtype=np.float64),
        vectors(2, dtype=np.int32),
        Sequence(query=vectors(1)),
    ]
    request = packed_request("m", given, ["output"], 3, token_offsets=True)
    shapes = [([*each.lengths], [*each.query.shape]) for each in request.inputs]
    packed = [([3, 1, 4], [8, 4]), ([2, 1], [3, 4])]
    alone = [([], [2, 5]), ([], []), ([], []), ([], [2, 4])]
    assert shapes == [packed[0], *alone, packed[1], ([], [2, 4]), ([], [2, 4]), ([2, 2, 1], [5, 4])]
    np.testing.assert_array_equal(codec.decode(request.inputs[0].query), np.concatenate(given[:3]))
    np.testing.assert_array_equal(codec.decode(request.inputs[5].query), np.concatenate(given[7:9]))
    last = [*given[11:13], given[13].query]
    np.testing.assert_array_equal(codec.decode(request.inputs[8].query), np.float32(np.concatenate(last)))
    singly = attend_request("m", given, ["output"], 3, token_offsets=True)
    assert request.inputs[2:5] == singly.inputs[4:7]
    del request.inputs[:], singly.inputs[:]
    assert request == singly


@pytest.mark.parametrize(
    "more",
    [
        {"key": vectors(2)},
        {"value": vectors(2)},
        {"memory": "id"},
        {"causal": "top_left"},
        {"window": (1, 0)},
        {"allowed": np.ones((2, 2), np.bool_)},
        {"bias": vectors(2, 2)},
    ],
    ids=lambda more: next(iter(more)),
)
def test_sequences_with_more_than_a_query_are_not_packed(more):
    """A key, value, memory or mask belongs to one query, and is sent with it."""
    given = [vectors(2), Sequence(query=vectors(2), **more), Sequence(query=vectors(2), **more)]
    request = packed_request("m", given, [], 0, token_offsets=False)
    assert request == attend_request("m", given, [], 0, token_offsets=False)
    assert all(each.query.shape and not each.lengths for each in request.inputs)


@pytest.mark.parametrize(
    "bad", [np.ones((2, 2, 2), np.float32), np.array(["x"]), object()], ids=["three axes", "strings", "an object"]
)
@pytest.mark.parametrize("position", range(8))
def test_sequences_without_a_form(bad, position):
    """A sequence that cannot be sent is refused by its position, in a packed message too."""
    sequences = [vectors(2), vectors(2), "a text", "another", vectors(2), vectors(2), vectors(2)]
    sequences.insert(position, bad)
    with pytest.raises(InvalidRequest) as caught:
        packed_request("m", sequences, [], 0, token_offsets=False)
    assert caught.value.field == f"inputs[{position}].query"


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("text", "\ud800"),
        ("text", 7),
        ("memory_text", "\udcff"),
        ("memory_text", []),
        ("memory", 7),
        ("memory", "\ud800"),
    ],
)
def test_texts_without_a_form(field, bad):
    """A text or id that is no str, or holds a lone surrogate, is refused by its field."""
    with pytest.raises(InvalidRequest) as caught:
        attend_request("m", ["a text", Sequence(**{field: bad})], [], 0, token_offsets=False)
    assert caught.value.field == f"inputs[1].{field}"


@pytest.mark.parametrize(
    ("field", "bad"),
    [("model", 7), ("model", "\ud800"), ("version", "x"), ("version", 2**40), ("memory_text", "\ud800")],
)
def test_parts_of_a_call_without_a_form(field, bad):
    """A model's name or version, and the text of a memory, are refused by name where a message cannot hold it."""
    given = {"model": "m", "version": 0, "memory_text": "a text", field: bad}
    with pytest.raises(InvalidRequest) as caught:
        create_memory_request(key=None, value=None, memory_token_ids=None, truncate="none", ttl=None, **given)
    assert caught.value.field == field
    if field != "memory_text":
        with pytest.raises(InvalidRequest) as caught:
            attend_request(given["model"], [], [], given["version"], token_offsets=False)
        assert caught.value.field == field


def test_an_empty_array_is_sent_as_it_is():
    """An array without vectors is not packed: the server reports it."""
    request = packed_request("m", [vectors(2), vectors(0), vectors(0)], [], 0, token_offsets=False)
    assert [[*each.lengths] for each in request.inputs] == [[], [], []]
    assert request.inputs[1].query == pb.Tensor(data_type=pb.DATA_TYPE_FP32, shape=[0, 4])


def test_an_answer_with_too_few_results():
    """A server that ignores `lengths` answers once for a packed input: then there are no results for the batch."""
    batch = Batch(0, [vectors(2), vectors(3)])
    batch.request = packed_request("m", batch.items, [], 0, token_offsets=False)
    results = [pb.Result(), pb.Result()]
    both = pb.AttendStreamResponse(id="0", response=pb.AttendResponse(results=results))
    assert len(batch.results(both)) == 2
    assert batch.results(pb.AttendStreamResponse(id="0", response=pb.AttendResponse(results=results[:1]))) is None
