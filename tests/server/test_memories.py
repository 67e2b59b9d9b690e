"""Memories: projected once, used many times, expired in time, over gRPC and REST."""

from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import requests
from attention_client import AttentionClient, InvalidRequest, NotFound, TooLarge
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceStub
from attention_server.contexts.memory import Memory, memory_id
from attention_server.contexts.store import MemoryStore
from attention_server.errors import NotFound as NotKept
from attention_server.errors import TooLarge as OverBudget
from serving import HANG, ROOT, start_server

from tests.refusals import refused_by_http

RNG = np.random.default_rng(5)
KEY = RNG.standard_normal((9, 6)).astype(np.float32)
VALUE = RNG.standard_normal((9, 4)).astype(np.float32)
QUERY = RNG.standard_normal((3, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def server():
    """The embedded models, with room for little."""
    with start_server(ROOT / "models", "--memory-mib", 1) as running:
        yield running


@pytest.fixture
def client(server):
    with AttentionClient(server.grpc) as connected:
        yield connected


@pytest.mark.parametrize("value", [None, VALUE], ids=["key-alone", "key-and-value"])
def test_by_handle_is_what_sending_it_is(client, value):
    """Attention over a kept memory equals attention over the same key and value sent along."""
    memory = client.create_memory("dot-product", key=KEY, value=value)
    outputs = ["output", "weights", "scores", "k", "v"]
    kept = client.attend("dot-product", query=QUERY, memory=memory, outputs=outputs, causal="bottom_right")
    sent = client.attend("dot-product", query=QUERY, key=KEY, value=value, outputs=outputs, causal="bottom_right")
    for name in outputs:
        np.testing.assert_array_equal(kept[name], sent[name])


def test_a_text_memory_brings_its_tokens(client):
    """A memory made from text answers with the text's tokens, as if it had been sent."""
    memory = client.create_memory("cross-attention", memory_text="twenty one")
    kept = client.attend("cross-attention", text="ein", memory=memory, outputs=["weights", "predictions"])
    sent = client.attend("cross-attention", text="ein", memory_text="twenty one", outputs=["weights", "predictions"])
    np.testing.assert_array_equal(kept.weights, sent.weights)
    assert kept.memory_tokens == sent.memory_tokens == memory.tokens == ("twenty", "one", "[END]")
    assert kept.predictions == sent.predictions


def test_the_same_content_has_the_same_id(client):
    """A memory is addressed by its content: twice the same is kept once, anything else is another."""
    first, again = (client.create_memory("dot-product", key=KEY) for _ in range(2))
    other = client.create_memory("dot-product", key=KEY, value=KEY[:, :3])
    assert first.id == again.id != other.id
    assert [memory.id for memory in client.memories("dot-product")].count(first.id) == 1


def test_memories_are_listed_described_and_forgotten_over_rest(server):
    """POST makes one, GET describes and lists, DELETE forgets; then it is a 404 that names the field."""
    url = f"{server.url}/v1/models/cross-attention/memories"
    made = requests.post(url, json={"memory_text": "four hundred", "ttl": 60}, timeout=HANG)
    assert made.status_code == 200, made.text
    memory = made.json()
    assert memory["tokens"] == ["four", "hundred", "[END]"]
    assert memory["length"] == 3
    described = requests.get(f"{url}/{memory['id']}", timeout=HANG).json()
    assert {**described, "expire_time": ""} == {**memory, "expire_time": ""}
    assert memory["id"] in [each["id"] for each in requests.get(url, timeout=HANG).json()["memories"]]
    attend = {"text": "", "memory": memory["id"], "outputs": ["predictions"]}
    answer = requests.post(f"{server.url}/v1/models/cross-attention:attend", json=attend, timeout=HANG).json()
    assert answer["results"][0]["predictions"][0]["label"] == "vier"
    assert requests.delete(f"{url}/{memory['id']}", timeout=HANG).status_code == 200
    for gone in (
        requests.get(f"{url}/{memory['id']}", timeout=HANG),
        requests.delete(f"{url}/{memory['id']}", timeout=HANG),
    ):
        assert (gone.status_code, gone.json()["error"]["field"]) == (404, "id")
    refused = requests.post(f"{server.url}/v1/models/cross-attention:attend", json=attend, timeout=HANG)
    assert (refused.status_code, refused.json()["error"]["field"]) == (404, "memory")


def test_get_memory_over_grpc(server):
    """GetMemory describes a memory as CreateMemory did."""
    with grpc.insecure_channel(server.grpc) as channel:
        stub = AttentionServiceStub(channel)
        made = stub.CreateMemory(pb.CreateMemoryRequest(model="cross-attention", memory_text="nine"))
        described = stub.GetMemory(pb.GetMemoryRequest(model="cross-attention", id=made.id))
    assert (described.id, described.length, list(described.tokens)) == (made.id, 2, ["nine", "[END]"])
    assert described.size_bytes == made.size_bytes > 0


@pytest.mark.parametrize(
    ("model", "request_", "field"),
    [
        ("dot-product", {}, "key"),
        ("dot-product", {"memory_text": "one"}, "memory_text"),
        ("cross-attention", {"memory_text": "one", "key": [[1.0]]}, "key"),
        ("cross-attention", {"memory_text": "quux"}, "memory_text"),
        ("cross-attention", {"memory_text": "one", "value": [[1.0]]}, "value"),
        ("cross-attention", {"key": [[1.0]]}, "key"),
        ("dot-product", {"key": [[1.0]], "value": [[1.0], [2.0]]}, "value"),
        ("dot-product", {"key": [[float("nan")]]}, "key"),
        ("dot-product", {"key": [[1.0]], "ttl": -1}, "ttl"),
        ("dot-product", {"key": [[1.0]], "ttl": 9e9}, "ttl"),
    ],
)
def test_what_is_no_memory_is_refused(client, model, request_, field):
    """A missing, unknown, ill-fitting or non-finite part is refused by its name."""
    with pytest.raises(InvalidRequest) as caught:
        client.create_memory(model, **request_)
    assert caught.value.field == field


def test_a_key_that_is_its_own_value_weighs_once(client):
    """Nothing is projected and nothing copied: a dot product's memory is as large as its key."""
    assert client.create_memory("dot-product", key=KEY).size_bytes == KEY.nbytes
    assert client.create_memory("dot-product", key=KEY, value=VALUE).size_bytes == KEY.nbytes + VALUE.nbytes


def test_a_very_long_time_is_refused_and_breaks_no_list(server):
    """A time to live beyond all calendars is a 400 over REST too, and the list goes on working."""
    url = f"{server.url}/v1/models/dot-product/memories"
    refused = requests.post(url, json={"key": [[1.0]], "ttl": 1e13}, timeout=HANG)
    assert (refused.status_code, refused.json()["error"]["field"]) == (400, "ttl")
    assert requests.get(url, timeout=HANG).status_code == 200


def test_a_memory_is_its_models(client):
    """Another model does not find it, and a query of another width is refused by name."""
    memory = client.create_memory("dot-product", key=KEY)
    with pytest.raises(NotFound) as caught:
        client.attend("cross-attention", text="", memory=memory.id)
    assert caught.value.field == "inputs[0].memory"
    with pytest.raises(InvalidRequest) as refused:
        client.attend("dot-product", query=QUERY[:, :5], memory=memory)
    assert refused.value.field == "inputs[0].query"


def test_one_too_large_for_the_budget_is_refused(client):
    """A memory that alone is over the budget is refused, and no memory is evicted."""
    small = client.create_memory("dot-product", key=KEY)
    with pytest.raises(TooLarge):
        client.create_memory("dot-product", key=np.zeros((70_000, 4), np.float32))
    assert small.id in [memory.id for memory in client.memories("dot-product")]


def make(content: str, size: int = 100, ttl: float = 10.0) -> Memory:
    k = np.zeros((1, 1, size // 4), np.float32)
    return Memory(memory_id("m", 1, [content]), "m", 1, {"k": k, "v": k}, None, ttl)


def test_the_least_recently_used_goes_first():
    """Within the budget nothing goes; beyond it, the least recently used one."""
    store = MemoryStore(300)
    a, b, c, d = (make(name) for name in "abcd")
    for memory in (a, b, c):
        store.put(memory)
    store.get(a.id, "m")
    store.put(d)
    assert [memory.id for memory in store.of("m")] == [d.id, a.id, c.id]
    with pytest.raises(OverBudget):
        store.put(make("e", 400))


def test_a_memory_is_forgotten_after_its_last_use():
    """The time to live begins anew with each use."""
    now = [0.0]
    store = MemoryStore(1000, clock=lambda: now[0])
    memory = make("a", ttl=10)
    store.put(memory)
    for later in (9.0, 18.0):
        now[0] = later
        assert store.get(memory.id, "m") is memory
        assert store.seconds_left(memory) == 10
    now[0] = 28.0
    with pytest.raises(NotKept):
        store.get(memory.id, "m")
    assert store.of("m") == []


def test_made_again_it_is_kept_for_the_longer_of_both():
    """Making the same memory with a shorter time to live does not shorten its life."""
    now = [0.0]
    store = MemoryStore(1000, clock=lambda: now[0])
    store.put(make("a", ttl=600))
    store.put(make("a", ttl=1))
    now[0] = 500.0
    assert store.get(make("a").id, "m").ttl == 600


def test_a_memory_of_another_version_is_not_found():
    """A memory is bound to the version that projected it."""
    store = MemoryStore(1000)
    memory = make("a")
    store.put(memory)
    assert store.get(memory.id, "m", 1) is memory
    with pytest.raises(NotKept, match="version 1, not 2"):
        store.get(memory.id, "m", 2)


def test_many_at_once_keep_the_budget():
    """Threads that put, use and forget at once leave the sizes in order."""
    store = MemoryStore(1000)

    def churn(name: int) -> None:
        for step in range(200):
            memory = make(f"{name} {step % 7}", 100 + 4 * (step % 5))
            store.put(memory)
            try:
                store.get(memory.id, "m")
                store.delete(memory.id, "m")
            except NotKept:
                pass  # another thread's memories have pushed it out

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(churn, range(8)))
    assert store.state().size == sum(memory.size for memory in store.of("m")) <= 1000


def test_rest_speaks_protobuf_of_memories_and_models_too(server):
    """Every route with a message of the contract takes and gives it in protobuf."""
    url, both = (
        f"{server.url}/v1/models",
        {"content-type": "application/x-protobuf", "accept": "application/x-protobuf"},
    )
    models = pb.ListModelsResponse.FromString(requests.get(url, headers=both, timeout=HANG).content).models
    assert [model.name for model in models] == ["cross-attention", "dot-product", "multi-head", "self-attention"]
    one = pb.Model.FromString(requests.get(f"{url}/multi-head", headers=both, timeout=HANG).content)
    assert one == models[2]
    wanted = pb.CreateMemoryRequest(memory_text="seven").SerializeToString()
    memories = f"{url}/cross-attention/memories"
    made = pb.Memory.FromString(requests.post(memories, wanted, headers=both, timeout=HANG).content)
    assert list(made.tokens) == ["seven", "[END]"]
    kept = pb.ListMemoriesResponse.FromString(requests.get(memories, headers=both, timeout=HANG).content).memories
    assert made.id in [memory.id for memory in kept]
    assert pb.Memory.FromString(requests.get(f"{memories}/{made.id}", headers=both, timeout=HANG).content).id == made.id
    assert requests.delete(f"{memories}/{made.id}", headers=both, timeout=HANG).content == b""
    assert refused_by_http(requests.post(memories, b"\xff\xff", headers=both, timeout=HANG)).http == 400
