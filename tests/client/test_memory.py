"""Memories: created once, attended to by handle, and created again when the server has lost one."""

from datetime import UTC, datetime
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from attention_client import DeadlineExceeded, InvalidRequest, NotFound, Sequence
from attention_proto import codec
from attention_proto.attention.v1 import attention_pb2 as pb
from google.rpc.status_pb2 import Status

pytestmark = pytest.mark.both_grpc_servers

X = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
WEIGHTS = ["weights"]


def test_attributes_of_a_memory(connect, target):
    """The attributes of a memory are those of the server's answer."""
    with connect(target) as client:
        memory = client.create_memory("aloud", memory_text="a b c")
        assert (memory.model, memory.version, memory.length, memory.tokens) == ("aloud", 1, 3, ("a", "b", "c"))
        assert memory.expire_time == datetime(2033, 5, 18, 3, 33, 20, tzinfo=UTC)
        vectors = client.create_memory("any", key=X)
    assert (vectors.length, vectors.tokens, vectors.size_bytes) == (5, (), X.nbytes)
    assert repr(vectors) == f"<Memory {vectors.id} of any 1: 5 positions, 160 bytes>"


def test_every_option_reaches_the_wire(connect, target, service):
    """A request has exactly the fields that the caller set."""
    with connect(target) as client:
        client.create_memory(
            "any", key=X, value=X.astype(np.float16), version=3, ttl=1.5, pinned=True, data_type="FP16"
        )
        client.create_memory("aloud", memory_text="")
    numbers, text = service.created
    assert numbers == pb.CreateMemoryRequest(
        model="any",
        version=3,
        key=codec.encode(X),
        value=codec.encode(X.astype(np.float16)),
        ttl={"seconds": 1, "nanos": 500_000_000},
        pinned=True,
        data_type=pb.DATA_TYPE_FP16,
    )
    assert text == pb.CreateMemoryRequest(model="aloud", memory_text="")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"key": X > 0}, "key"),
        ({"key": X, "value": [["a"]]}, "value"),
        ({"key": X, "ttl": "soon"}, "ttl"),
        ({"key": X, "data_type": "BF16"}, "data_type"),
        ({"key": X, "ttl": float("inf")}, "ttl"),
        ({"key": X, "ttl": float("nan")}, "ttl"),
    ],
)
def test_arguments_without_a_wire_form(connect, target, service, arguments, field):
    """An argument without a form on the wire is refused before the call, by the field's name."""
    with connect(target) as client, pytest.raises(InvalidRequest) as caught:
        client.create_memory("any", **arguments)
    assert caught.value.field == field
    assert service.created == []


def test_attending_to_a_memory(connect, target):
    """Attention to a memory equals attention to its key, by handle and by id, alone and in a sequence."""
    with connect(target) as client:
        memory = client.create_memory("any", key=X)
        expected = client.attend("any", query=X[:2], key=X, outputs=WEIGHTS).weights
        batch = [Sequence(query=X[:2], memory=memory), Sequence(query=X[:2], memory=memory.id)]
        results = [
            client.attend("any", query=X[:2], memory=memory, outputs=WEIGHTS),
            *client.attend_batch("any", iter(batch), outputs=WEIGHTS),
        ]
    for result in results:
        np.testing.assert_array_equal(result.weights, expected)


def test_a_memory_names_the_keys(connect, target):
    """Weights over a memory of text carry the names of its tokens."""
    with connect(target) as client:
        memory = client.create_memory("aloud", memory_text="a b")
        assert client.attend("aloud", text="", memory=memory, outputs=WEIGHTS).key_tokens == ("a", "b")


def test_memories_and_their_end(connect, target):
    """Memories are listed by model, newest first, and forgotten one by one."""
    with connect(target) as client:
        first = client.create_memory("any", key=X)
        second = client.create_memory("any", key=X[:2])
        client.create_memory("aloud", memory_text="a")
        assert [memory.id for memory in client.memories("any")] == [second.id, first.id]
        client.delete_memory(first)
        (listed,) = client.memories("any")
        client.delete_memory(listed)
        assert client.memories("any") == []
        with pytest.raises(NotFound) as caught:
            client.delete_memory(first)
        assert caught.value.field == "id"


def test_a_lost_memory_is_created_again(connect, target, service):
    """A memory that the server lost is created once, under the same id, and the call is answered as before."""
    with connect(target) as client:
        memory = client.create_memory("any", key=X, ttl=60)
        before = client.attend("any", query=X, memory=memory).output
        id_ = memory.id
        service.memories.clear()
        after = client.attend("any", query=X, memory=memory).output
    np.testing.assert_array_equal(before, after)
    first, again = service.created
    assert (first.id, again.id) == ("", id_)
    again.ClearField("id")
    assert first == again
    assert service.attempts == 3
    assert memory.id == id_ in service.memories


def test_all_lost_memories_are_created_at_once(connect, target, service):
    """One call over several lost memories creates each once, and is repeated once."""
    with connect(target) as client:
        a, b = (client.create_memory("any", key=key) for key in (X, X[:2]))
        service.memories.clear()
        service.created.clear()
        batch = [X, *(Sequence(query=X, memory=memory) for memory in (a, b, a))]
        results = client.attend_batch("any", batch, outputs=WEIGHTS)
    assert [result.weights.shape[-1] for result in results] == [5, 5, 2, 5]
    assert len(service.created) == 2
    assert service.attempts == 2


def test_a_new_version_has_its_own(connect, target, service):
    """When the model's default version is replaced, the memory is created for the new one, under its id."""
    with connect(target) as client:
        memory = client.create_memory("any", key=X)
        old = memory.id
        service.version = 2
        assert client.attend("any", query=X, memory=memory).version == 2
        assert client.attend("any", query=X, memory=memory).version == 2
    assert memory.version == 2
    assert memory.id == old
    assert len(service.created) == 2


def test_a_version_asked_for_gets_its_own(connect, target):
    """A memory follows the version that the call asks for."""
    with connect(target) as client:
        memory = client.create_memory("any", key=X)
        assert client.attend("any", query=X, memory=memory, version=7).version == memory.version == 7


@pytest.mark.parametrize("kind", ["id", "listed", "of another model"])
def test_memories_that_cannot_be_created_again(connect, target, service, kind):
    """An id, a listed memory, and one of another model are not created: the error names the field."""
    with connect(target) as client:
        made = client.create_memory("another" if kind == "of another model" else "any", key=X)
        memory = {"id": made.id, "listed": next(iter(client.memories(made.model)))}.get(kind, made)
        if kind != "of another model":
            client.delete_memory(made)
        with pytest.raises(NotFound) as caught:
            client.attend_batch("any", [X, Sequence(query=X, memory=memory)])
    assert caught.value.field == "inputs[1].memory"
    assert len(service.created) == service.attempts == 1


def test_a_missing_model_creates_no_memory(connect, target, service):
    """A missing model is no missing memory: nothing is created for it."""
    service.failures = [Status(code=grpc.StatusCode.NOT_FOUND.value[0], message="no model")]
    with connect(target) as client:
        memory = client.create_memory("any", key=X)
        with pytest.raises(NotFound, match="no model"):
            client.attend("any", query=X, memory=memory)
    assert len(service.created) == 1


def test_a_server_that_keeps_nothing(connect, target, service):
    """After three rounds of recreation the call raises the server's NotFound."""
    service.memories = Forgetful()
    with connect(target) as client, pytest.raises(NotFound, match="keeps no memory"):
        client.attend("any", query=X, memory=client.create_memory("any", key=X))
    assert service.attempts == 4


def test_all_repetitions_share_the_deadline(connect, target, service, monkeypatch):
    """The timeout bounds the whole call, with every memory that it creates and every repetition."""

    def monotonic():  # each creation takes 31 seconds, each attempt 10
        return 31.0 * len(service.created) + 10.0 * service.attempts

    with connect(target) as client:
        memory = client.create_memory("any", key=X)
        service.memories.clear()
        monkeypatch.setattr("attention_client.api.base.time", SimpleNamespace(monotonic=monotonic))
        with pytest.raises(DeadlineExceeded):
            client.attend("any", query=X, memory=memory, timeout=40)
        assert len(service.created) == 2
        assert service.creation_seconds[-1] < 35  # 30 of the 40, which gRPC rounds up
        service.memories.clear()
        client.attend("any", query=X, memory=memory, timeout=60)


def test_two_servers_that_take_turns(connect, target, service, replica):
    """Calls that are balanced over two servers end with the memory in both, and then create none."""
    other_target, other_service = replica
    with connect(f"{target},{other_target}") as client:
        while not (service.attempts and other_service.attempts):
            client.attend("any", query=X)
        memory = client.create_memory("any", key=X)
        for _ in range(6):
            client.attend("any", query=X, memory=memory)
        attempts = service.attempts + other_service.attempts
        for _ in range(6):
            client.attend("any", query=X, memory=memory)
    assert memory.id in service.memories and memory.id in other_service.memories
    assert service.attempts + other_service.attempts == attempts + 6


class Forgetful(dict):
    """A mapping that loses every entry."""

    def get(self, _):
        return None
