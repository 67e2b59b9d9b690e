"""Several sequences sent as one: a dense batch, or packed. Each has the answer that it has alone."""

import gc
import json
import weakref
from concurrent.futures import ThreadPoolExecutor
from threading import get_ident

import numpy as np
import pytest
from attention_client import AttentionClient
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_server.auth.callers import ALL_RIGHTS
from attention_server.codecs import json as translate_json
from attention_server.codecs import proto
from attention_server.codecs.batch import expand
from attention_server.domain import messages as domain
from attention_server.domain.call import CallContext
from attention_server.domain.limits import Limits
from attention_server.errors import InvalidRequest, TooLarge
from serving import HANG, start_server, wait_until

from tests.local_server import IN_A_SLOT, local_server
from tests.messages import tensor
from tests.observability.conftest import entries, metrics_of
from tests.refusals import refused
from tests.server.test_together import (  # noqa: F401
    DRAWN,
    EVERYTHING,
    WIDTHS,
    assert_same,
    merging,
    models,
    queued_behind_one,
    sequence,
)
from tests.transports import TRANSPORTS

LIMITS = Limits(sequences=8, scores_bytes=2**20, answer_bytes=2**20, memory_ttl=60)
LENGTHS = (3, 3, 3, 2, 40, 3, 3)  # neighbours of one length, and further lengths
ASKED = (
    ["output"],
    EVERYTHING,
    [{"name": "weights", "reduce": "mean", "top_k": 2}, {"name": "q", "rows": [0]}],
    [{"name": "output", "data_type": "FP16"}, {"name": "output", "as": "mean", "pool": "mean"}],
)
READ = {"query": 8, "key": 6, "value": 4}  # widths of the model that predicts
MASKS = ({}, {"shared_mask": {"causal": "top_left"}}, {"mask": {"window": {"left": 1, "right": 0}}})


def behind(sequences):
    """Pack sequences."""
    joined = {name: np.concatenate([each[name] for each in sequences]) for name in sequences[0]}
    return joined | {"lengths": [len(each["query"]) for each in sequences]}


def singly(transport, name, sequences, mask=None, **options):
    """Ask for each sequence by itself."""
    own = {"mask": mask} if mask else {}
    return [transport.attend(name, version=1, inputs=[each | own], **options)["results"][0] for each in sequences]


# Over gRPC every output under every mask; a transport reads lengths, leading dimensions and masks, whatever is asked.


@pytest.fixture
def over_grpc(server, connect):
    return connect("grpc", server.rest, server.grpc)


def check_packed(transport, name, outputs, mask):
    sequences = [sequence(name, length) for length in LENGTHS]
    expected = singly(transport, name, sequences, outputs=outputs, **mask)
    assert_same(transport.attend(name, version=1, **behind(sequences), outputs=outputs, **mask)["results"], expected)


def check_dense(transport, name, outputs, mask, count):
    sequences = [sequence(name, 5) for _ in range(count)]
    expected = singly(transport, name, sequences, outputs=outputs, **mask)
    batch = {each: np.stack([one[each] for one in sequences]) for each in sequences[0]}
    assert_same(transport.attend(name, version=1, **batch, outputs=outputs, **mask)["results"], expected)


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("outputs", ASKED, ids=str)
@pytest.mark.parametrize("name", WIDTHS)
def test_one_behind_the_other(over_grpc, name, outputs, mask):
    """Sequences of any lengths may lie in a row; each has a result of its own, in order."""
    check_packed(over_grpc, name, outputs, mask)


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("name", WIDTHS)
def test_one_behind_the_other_over_each_transport(transport, name, mask):
    """Each transport reads sequences in a row, for every block and under every mask."""
    check_packed(transport, name, EVERYTHING, mask)


@pytest.mark.parametrize("count", [1, 2, 20])
@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("outputs", ASKED, ids=str)
@pytest.mark.parametrize("name", WIDTHS)
def test_a_dense_batch(over_grpc, name, outputs, mask, count):
    """Arrays with a leading dimension are so many sequences."""
    check_dense(over_grpc, name, outputs, mask, count)


@pytest.mark.parametrize(("mask", "count"), list(zip((*MASKS, {}), (1, 2, 2, 20), strict=True)), ids=str)
@pytest.mark.parametrize("name", WIDTHS)
def test_a_dense_batch_over_each_transport(transport, name, mask, count):
    """Each transport reads a leading dimension, for every block and under every mask."""
    check_dense(transport, name, EVERYTHING, mask, count)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("outputs", [[], ["predictions"], ["predictions", "weights"]], ids=str)
def test_predictions(transport, outputs, count, packed):
    """A head predicts for each sequence."""
    drawn = {name: DRAWN.standard_normal((count, 4, width), np.float32) for name, width in READ.items()}
    sequences = [{name: array[i] for name, array in drawn.items()} for i in range(count)]
    expected = singly(transport, "text-cross", sequences, outputs=outputs)
    assert expected[0]["predictions"]
    sent = behind(sequences) if packed else drawn
    assert_same(transport.attend("text-cross", **sent, outputs=outputs)["results"], expected)


def test_beside_others(transport):
    """A batch may stand among sequences, and its results stand in its place."""
    sequences = [sequence("multi", length) for length in (3, 3, 7, 3, 2, 2, 3)]
    dense = {"query": np.stack([each["query"] for each in sequences[4:6]])}
    inputs = [sequences[0], behind(sequences[1:4]), dense, sequences[6]]
    assert_same(transport.attend("multi", inputs=inputs)["results"], singly(transport, "multi", sequences))


def test_halves(transport):
    """Packed sequences may be float16."""
    sequences = [{"query": sequence("multi", length)["query"].astype(np.float16)} for length in LENGTHS]
    assert_same(transport.attend("multi", **behind(sequences))["results"], singly(transport, "multi", sequences))


def test_over_one_memory(server, connect):
    """Packed queries may have one memory, which holds for each."""
    ask = connect("grpc", server.rest, server.grpc)
    memory = sequence("cross", 1, 9)
    steps = [{"query": sequence("cross", length)["query"]} for length in (1, 1, 4, 1)]
    kept = {"key": memory["key"], "value": memory["value"]}
    expected = [ask.one("cross", version=1, **each, **kept) for each in steps]
    with AttentionClient(server.grpc) as client:
        handle = client.create_memory("cross", version=1, **kept)
        assert_same(ask.attend("cross", version=1, **behind(steps), memory=handle.id)["results"], expected)


@pytest.mark.parametrize("packed", [False, True])
def test_it_runs_together(models, connect, packed):  # noqa: F811
    """A batch of short sequences runs as it came, as many at once as pay, and two that wait run together."""
    sequences = [sequence("multi", 3) for _ in range(20)]
    with merging(models, most=8) as server:
        ask = connect("grpc", server.rest, server.grpc)
        expected = singly(ask, "multi", sequences)
        runs = server.gate.runs // len(sequences)
        server.gate.runs = 0
        sent = behind(sequences) if packed else {"query": np.stack([each["query"] for each in sequences])}
        assert_same(ask.attend("multi", **sent)["results"], expected)
        assert server.gate.runs == 3 * runs


@pytest.mark.parametrize(
    ("given", "field", "says"),
    [
        ({"query": np.ones((5, 2), np.float32), "lengths": [2, 2]}, "query", ["[5, 2]", "[4, width]"]),
        ({"query": np.ones((4, 2), np.float32), "lengths": [4, 0]}, "lengths", ["at least 1"]),
        ({"query": np.ones((2, 2, 2), np.float32), "lengths": [2]}, "query", ["[2, 2, 2]"]),
        (
            {"query": np.ones((4, 2), np.float32), "key": np.ones((3, 2), np.float32), "lengths": [2, 2]},
            "key",
            ["[3, 2]", "[4, width]"],
        ),
        ({"key": np.ones((4, 2), np.float32), "lengths": [2, 2]}, "lengths", ["query"]),
        ({"text": "one", "lengths": [1]}, "lengths", ["query"]),
        ({"query": np.ones((4, 0), np.float32), "lengths": [2, 2]}, "query", ["empty"]),
        ({"query": np.ones((2, 2, 0), np.float32)}, "query", ["empty"]),
        ({"query": np.ones((2, 2), np.float32), "lengths": [2**31 - 1, 2**31 - 1]}, "query", ["[2, 2]"]),
    ],
    ids=str,
)
def test_lengths_that_are_wrong(transport, given, field, says):
    """Lengths that do not match the tensors are refused by the name of the field."""
    with refused("INVALID_ARGUMENT", None, *says) as caught:
        transport.attend("dot", **given)
    assert caught.value.field.startswith(transport.at(field))


@pytest.mark.parametrize("lengths", [(2, 2, 2), (2, 1, 2, 3), (4, 4, 4), (8, 8), (20, 20)], ids=str)
def test_batches_that_wait_run_together(models, connect, lengths):  # noqa: F811
    """Batches of several requests that wait run together, as many sequences as pay; each has its own answers."""
    batches = [[sequence("multi", 3) for _ in range(count)] for count in (1, *lengths)]
    with merging(models, most=8, predicted=IN_A_SLOT) as server, ThreadPoolExecutor(8) as threads:
        ask = connect("grpc", server.rest, server.grpc)
        expected = [singly(ask, "multi", each) for each in batches]
        asks = [lambda each=each: ask.attend("multi", **behind(each))["results"] for each in batches]
        for found, right in zip(queued_behind_one(server, threads, asks), expected, strict=True):
            assert_same(found, right)
        together = {(2, 2, 2): 1, (2, 1, 2, 3): 1, (4, 4, 4): 2, (8, 8): 2, (20, 20): 6}[lengths]
        assert server.gate.runs == 1 + 2 * together  # the rest of the first


def test_too_many(transport):
    """The limit of sequences of a request holds for packed sequences."""
    with refused("RESOURCE_EXHAUSTED", None, "sequences") as caught:
        transport.attend("dot", query=np.ones((5000, 2), np.float32), lengths=[1] * 5000)
    assert caught.value.field == transport.at("lengths")


@pytest.mark.parametrize("number", [np.nan, 3e38])
@pytest.mark.parametrize("lengths", [(), (2, 2), (1, 3)], ids=str)
def test_a_refusal_holds_nothing(models, number, lengths):  # noqa: F811
    """A refused request is freed with its error, without the garbage collector."""
    array = np.full((4, 24), number, np.float32)
    inputs = tuple(expand(domain.Sequence(query=array), lengths, LIMITS))
    request, held = domain.Request("multi", inputs=inputs), weakref.ref(array)
    with local_server(models) as server:
        gc.collect()
        gc.disable()
        try:
            with pytest.raises(InvalidRequest) as caught:
                server.service.submit(request, CallContext("id", rights=ALL_RIGHTS)).result(HANG)
            assert str(caught.value)
            del array, inputs, request, caught
            wait_until(lambda: held() is None)
        finally:
            gc.enable()


@pytest.mark.parametrize("lengths", [(2, 2, 2), (1, 2, 3)], ids=str)
@pytest.mark.parametrize(("number", "says"), [(np.nan, "finite"), (3e38, "overflows")])
@pytest.mark.parametrize("name", ["self", "multi"])
def test_which_is_at_fault(transport, name, number, says, lengths):
    """Of sequences that were sent as one the error says which one it is in."""
    sequences = [sequence(name, length) for length in lengths]
    sequences[1]["query"][:] = number
    with refused("INVALID_ARGUMENT", None, says, "sequence 1 of the batch"):
        transport.attend(name, version=1, **behind(sequences))
    if len(set(lengths)) == 1:
        with refused("INVALID_ARGUMENT", None, says, "sequence 1 of the batch"):
            transport.attend(name, version=1, query=np.stack([each["query"] for each in sequences]))


@pytest.mark.parametrize(("lengths", "on_loop"), [([3] * 100, True), ([1, 2] * 20, True), ([1, 2] * 50, False)])
def test_many_are_not_looked_at_on_the_loop(models, connect, monkeypatch, lengths, on_loop):  # noqa: F811
    """Many sequences that are not alike would hold up the loop: a thread looks at them."""
    threads = []
    with local_server(models) as server:
        submit = server.service.submit
        monkeypatch.setattr(server.service, "submit", lambda *given: (threads.append(get_ident()), submit(*given))[1])
        ask = connect("grpc", server.rest, server.grpc)
        for given in ({"query": np.ones((1, 24), np.float32)}, behind([sequence("multi", each) for each in lengths])):
            ask.attend("multi", **given)
    assert (threads[0] == threads[1]) == on_loop


@pytest.fixture(scope="module")
def logging_server(repository, tmp_path_factory):
    """A server that logs each request, and has answered one of a sequence, so that it has metrics of the model."""
    folder = tmp_path_factory.mktemp("logging")
    (folder / "multi").symlink_to(repository / "multi")
    with start_server(folder, "--access-log", "all", "--log-format", "json") as running:
        with AttentionClient(running.grpc) as client:
            client.attend("multi", **sequence("multi", 1))
        wait_until(lambda: attended(running))
        yield running


def attended(server):
    """Return the log's entries of requests to the model, without those that read metrics."""
    return [entry for entry in entries(server.log) if entry.get("model") == "multi"]


@pytest.mark.parametrize("name", TRANSPORTS)
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_each_sequence_counts(logging_server, connect, name, packed):
    """The metrics and the log count the sequences of a batch one by one, each with its length."""
    sequences = [sequence("multi", length) for length in ((1, 4, 2) if packed else (3, 3, 3))]
    sent = behind(sequences) if packed else {"query": np.stack([each["query"] for each in sequences])}
    tokens = sum(len(each["query"]) for each in sequences)
    before, earlier = metrics_of(logging_server), len(attended(logging_server))
    transport = connect(name, logging_server.rest, logging_server.grpc)
    assert len(transport.attend("multi", **sent)["results"]) == 3
    wait_until(lambda: len(attended(logging_server)) > earlier)
    (entry,) = attended(logging_server)[earlier:]
    after = metrics_of(logging_server)
    counts = {
        "nv_inference_count": 3,
        "nv_inference_exec_count": 1,
        "attention_request_sequences_sum": 3,
        "attention_tokens_total": tokens,
    }
    assert {each: after(each, model="multi") - before(each, model="multi") for each in counts} == counts
    assert (entry["sequences"], entry["tokens"]) == (3, tokens)


def test_no_more_are_read_than_may_be():
    """The sequences of all inputs count together, before the last ones are read."""
    three = pb.Sequence(query=tensor(np.ones((6, 2), np.float32)), lengths=[1, 2, 3])
    assert len(proto.decode_request(pb.AttendRequest(inputs=[three] * 2), LIMITS).inputs) == 6
    with pytest.raises(TooLarge, match="9 sequences"):
        proto.decode_request(pb.AttendRequest(inputs=[three] * 8), LIMITS)
    document = {"inputs": [{"query": [[1.0]] * 6, "lengths": [1, 2, 3]}] * 8}
    with pytest.raises(TooLarge, match="9 sequences"):
        translate_json.decode_request(json.dumps(document).encode(), "m", 0, LIMITS)
