"""Several sequences sent as one: as a dense batch, or one behind the other. Each is answered as it is alone."""

import numpy as np
import pytest
from attention_client import AttentionClient

from tests.conftest import refused
from tests.server.test_together import EVERYTHING, WIDTHS, assert_same, merging, models, sequence  # noqa: F401

LENGTHS = (3, 3, 3, 2, 40, 3, 3)  # neighbours of one length, and others
ASKED = (["output"], EVERYTHING, [{"name": "weights", "reduce": "mean", "top_k": 2}, {"name": "q", "rows": [0]}])
MASKS = ({}, {"shared_mask": {"causal": "top_left"}}, {"mask": {"window": {"left": 1, "right": 0}}})


def behind(sequences):
    """Put sequences one behind the other."""
    joined = {name: np.concatenate([each[name] for each in sequences]) for name in sequences[0]}
    return joined | {"lengths": [len(each["query"]) for each in sequences]}


def singly(transport, name, sequences, mask=None, **options):
    """Ask for each sequence by itself."""
    own = {"mask": mask} if mask else {}
    return [transport.attend(name, version=1, inputs=[each | own], **options)["results"][0] for each in sequences]


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("outputs", ASKED, ids=str)
@pytest.mark.parametrize("name", WIDTHS)
def test_one_behind_the_other(transport, name, outputs, mask):
    """Sequences of any lengths may lie one behind the other; each has a result of its own, in order."""
    sequences = [sequence(name, length) for length in LENGTHS]
    expected = singly(transport, name, sequences, outputs=outputs, **mask)
    assert_same(transport.attend(name, version=1, **behind(sequences), outputs=outputs, **mask)["results"], expected)


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("outputs", ASKED, ids=str)
@pytest.mark.parametrize("name", WIDTHS)
def test_a_dense_batch(transport, name, outputs, mask):
    """Arrays with a leading dimension are so many sequences."""
    sequences = [sequence(name, 5) for _ in range(20)]
    expected = singly(transport, name, sequences, outputs=outputs, **mask)
    batch = {each: np.stack([one[each] for one in sequences]) for each in sequences[0]}
    assert_same(transport.attend(name, version=1, **batch, outputs=outputs, **mask)["results"], expected)


def test_beside_others(transport):
    """What was sent as one stands among others, and its results stand where it stood."""
    sequences = [sequence("multi", length) for length in (3, 3, 7, 3, 2, 2, 3)]
    dense = {"query": np.stack([each["query"] for each in sequences[4:6]])}
    inputs = [sequences[0], behind(sequences[1:4]), dense, sequences[6]]
    assert_same(transport.attend("multi", inputs=inputs)["results"], singly(transport, "multi", sequences))


def test_halves(transport):
    """What lies one behind the other may be float16."""
    sequences = [{"query": sequence("multi", length)["query"].astype(np.float16)} for length in LENGTHS]
    assert_same(transport.attend("multi", **behind(sequences))["results"], singly(transport, "multi", sequences))


def test_over_one_memory(server, connect):
    """Queries one behind the other may have one memory, which holds for each."""
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
        ({"query": np.ones((2, 2), np.float32), "lengths": [2**31 - 1, 2**31 - 1]}, "query", ["[2, 2]"]),
    ],
    ids=str,
)
def test_lengths_that_are_wrong(transport, given, field, says):
    """Lengths that do not say what was sent are refused by their field."""
    with refused("INVALID_ARGUMENT", None, *says) as caught:
        transport.attend("dot", **given)
    assert caught.value.field.startswith(transport.at(field))


def test_too_many(transport):
    """Not more sequences may lie one behind the other than a request may have."""
    with refused("RESOURCE_EXHAUSTED", None, "sequences") as caught:
        transport.attend("dot", query=np.ones((5000, 2), np.float32), lengths=[1] * 5000)
    assert caught.value.field == transport.at("lengths")


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
