"""Memories: projected once, used many times, expired in time, over gRPC and REST."""

import runpy

import grpc
import numpy as np
import pytest
import requests
from attention_client import AttentionClient, InvalidRequest, NotFound, Sequence, TooLarge
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceStub
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


def test_late_interaction(client):
    """The recipe's score of a document is the sum over query tokens of the largest dot product, in float64."""
    example = runpy.run_path(str(ROOT / "docs/examples/late_interaction.py"))
    documents = [RNG.standard_normal((length, 6)).astype(np.float32) for length in (1, 4, 9)]
    found = example["max_sim"](client, QUERY, example["keep"](client, documents))
    expected = [(QUERY.astype(np.float64) @ each.astype(np.float64).T).max(1).sum() for each in documents]
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)  # documents are kept in FP16


def test_keys_beside_a_memory_come_behind_its_own(client):
    """In a block that projects nothing, own keys are behind the memory's, and queries at the positions behind these."""
    memory = client.create_memory("dot-product", key=KEY[:4], value=VALUE[:4])
    outputs = ["output", "weights", "k", "v"]
    behind = client.attend(
        "dot-product", query=QUERY, memory=memory, key=KEY[4:], value=VALUE[4:], outputs=outputs, causal="top_left"
    )
    allowed = np.arange(9) <= 4 + np.arange(3)[:, None]
    sent = client.attend("dot-product", query=QUERY, key=KEY, value=VALUE, outputs=outputs, allowed=allowed)
    for name in outputs:
        np.testing.assert_array_equal(behind[name], sent[name])
    for field, wrong in (("key", {"key": KEY[:, :2]}), ("value", {"key": KEY, "value": KEY})):
        with pytest.raises(InvalidRequest, match=r"must be .* wide") as caught:
            client.attend("dot-product", query=QUERY, memory=memory, **wrong)
        assert caught.value.field.endswith(field)


def test_a_text_memory_brings_its_tokens(client):
    """A memory made from text answers with the text's tokens, as if it had been sent."""
    memory = client.create_memory("cross-attention", memory_text="twenty one")
    kept = client.attend("cross-attention", text="ein", memory=memory, outputs=["weights", "predictions"])
    sent = client.attend("cross-attention", text="ein", memory_text="twenty one", outputs=["weights", "predictions"])
    np.testing.assert_array_equal(kept.weights, sent.weights)
    assert kept.memory_tokens == sent.memory_tokens == memory.tokens == ("twenty", "one", "[END]")
    assert kept.predictions == sent.predictions


def test_the_same_content_has_the_same_id(client):
    """The same content from the same caller is kept once, anything else is another memory."""
    first, again = (client.create_memory("dot-product", key=KEY) for _ in range(2))
    other = client.create_memory("dot-product", key=KEY, value=KEY[:, :3])
    assert first.id == again.id != other.id
    assert [memory.id for memory in client.memories("dot-product")].count(first.id) == 1


def test_a_memory_is_made_again_under_its_id(client, server):
    """A memory that is gone is made again under its id; the id of a memory of other content is refused."""
    memory = client.create_memory("dot-product", key=KEY)
    before, id_ = client.attend("dot-product", query=QUERY, memory=memory).output, memory.id
    client.delete_memory(memory)
    np.testing.assert_array_equal(client.attend("dot-product", query=QUERY, memory=memory).output, before)
    assert memory.id == id_
    url = f"{server.url}/v1/models/dot-product/memories"
    for sent, field in (({"key": [[1.0]], "id": id_}, "id"), ({"key": [[1.0]], "id": "mine"}, "id")):
        refused = refused_by_http(requests.post(url, json=sent, timeout=HANG))
        assert (refused.http, refused.field) == (400, field)


def test_fp16_halves_the_bytes_and_tells_its_error(client, server):
    """A memory kept as FP16 has half the bytes, the error that NumPy measures, and outputs of the rounded numbers."""
    memory = client.create_memory("dot-product", key=KEY, value=VALUE, data_type="FP16")
    halves = [each.astype(np.float16).astype(np.float32) for each in (KEY, VALUE)]
    assert (memory.data_type, memory.size_bytes) == ("FP16", (KEY.nbytes + VALUE.nbytes) // 2)
    error = max(np.abs(half - each).max() for half, each in zip(halves, (KEY, VALUE), strict=True))
    assert 0 < memory.max_storage_error == pytest.approx(float(error), rel=1e-6)
    kept = client.attend("dot-product", query=QUERY, memory=memory, outputs=["output", "k"])
    sent = client.attend("dot-product", query=QUERY, key=halves[0], value=halves[1])
    np.testing.assert_array_equal(kept.output, sent.output)
    np.testing.assert_array_equal(kept["k"][0], halves[0])
    assert client.create_memory("dot-product", key=KEY, value=VALUE).id != memory.id
    with pytest.raises(InvalidRequest, match="FP16 ends at 65504") as refused:
        client.create_memory("dot-product", key=KEY * 1e6, data_type="FP16")
    assert refused.value.field == "data_type"
    made = {"memory_text": "four hundred", "data_type": "FP16", "pinned": True}
    answer = requests.post(f"{server.url}/v1/models/cross-attention/memories", json=made, timeout=HANG).json()
    assert (answer["data_type"], answer["pinned"], answer["shared_bytes"]) == ("FP16", True, 0)
    assert 0 < answer["max_storage_error"] < 0.01
    client.delete_memory(next(each for each in client.memories("cross-attention") if each.id == answer["id"]))


def test_a_baseline_is_subtracted(client, server):
    """Outputs with a baseline are those behind the memory minus those behind the baseline; further ones are as ever."""
    memory, other = (client.create_memory("cross-attention", memory_text=text) for text in ("twenty one", "forty two"))
    plain = ["output", {"name": "weights", "rows": [-1], "as": "row"}, "entropy", "predictions"]
    asked = [{"name": "output", "baseline": other}, {**plain[1], "baseline": other.id}, "entropy", "predictions"]
    texts = ["ein", "ein und"]
    behind, of_other, found = (
        client.attend_batch("cross-attention", [Sequence(text=text, memory=each) for text in texts], outputs=outputs)
        for each, outputs in ((memory, plain), (other, plain), (memory, asked))
    )
    for own, others, difference in zip(behind, of_other, found, strict=True):
        for name in ("output", "row"):
            np.testing.assert_array_equal(difference[name], own[name] - others[name])
        np.testing.assert_array_equal(difference["entropy"], own["entropy"])
        assert difference.predictions == own.predictions
    url, longer = (
        f"{server.url}/v1/models/cross-attention:attend",
        client.create_memory("cross-attention", memory_text="nine"),
    )
    sent = {"text": "ein", "memory": memory.id}
    answer = requests.post(
        url, json={**sent, "outputs": [{"name": "output", "baseline": other.id}]}, timeout=HANG
    ).json()
    values = answer["results"][0]["outputs"]["output"]["values"]
    np.testing.assert_allclose(values, found[0].output, rtol=1e-6)
    for outputs, field, code in (
        ([{"name": "predictions", "baseline": other.id}], "outputs[0].baseline", 400),
        ([{"name": "weights", "top_k": 1, "baseline": other.id}], "outputs[0].baseline", 400),
        ([{"name": "weights", "data_type": "FP16", "baseline": other.id}], "outputs[0].baseline", 400),
        ([{"name": "weights", "baseline": longer.id}], "outputs[0].baseline", 400),
        ([{"name": "weights", "baseline": "0" * 32}], "outputs[0].baseline", 404),
        (
            [{"name": "weights", "baseline": other.id}, {"name": "output", "baseline": longer.id}],
            "outputs[1].baseline",
            400,
        ),
    ):
        refused = refused_by_http(requests.post(url, json={**sent, "outputs": outputs}, timeout=HANG))
        assert (refused.http, refused.field) == (code, field)
    unkept = {"text": "ein", "memory_text": "nine", "outputs": [{"name": "output", "baseline": other.id}]}
    assert refused_by_http(requests.post(url, json=unkept, timeout=HANG)).field == "memory"


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


def test_rest_speaks_protobuf_of_memories_and_models_too(server):
    """Every route with a message of the contract takes and gives it in protobuf."""
    url, both = (
        f"{server.url}/v1/models",
        {"content-type": "application/x-protobuf", "accept": "application/x-protobuf"},
    )
    models = pb.ListModelsResponse.FromString(requests.get(url, headers=both, timeout=HANG).content).models
    assert [model.name for model in models] == ["cross-attention", "dot-product", "multi-head", "self-attention"]
    one = pb.Model.FromString(requests.get(f"{url}/multi-head", headers=both, timeout=HANG).content)
    assert "tater" in [word.lower() for word in one.words]  # GetModel alone tells these
    one.ClearField("words")
    one.ClearField("memory_words")
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
