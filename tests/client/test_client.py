"""Both clients, blocking and asyncio, against a real gRPC server."""

import inspect

import attention_client
import numpy as np
import pytest
from attention_client import (
    AsyncAttentionClient,
    AttentionClient,
    InvalidRequest,
    NotFound,
    NotRequested,
    OutputSpec,
    Sequence,
    TopK,
)
from attention_proto import codec
from attention_proto.attention.v1 import attention_pb2 as pb

pytestmark = pytest.mark.both_grpc_servers

SENTENCE = "I gave my cat Tater a toy"
X = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)


def test_public_names():
    """The public names change only on purpose."""
    assert attention_client.__all__ == [
        "Ablation",
        "Alignment",
        "AsyncAttentionClient",
        "AttendResult",
        "AttentionClient",
        "AttentionError",
        "Candidate",
        "DeadlineExceeded",
        "GeneratedToken",
        "InternalError",
        "InvalidRequest",
        "Link",
        "Memory",
        "NotFound",
        "NotRequested",
        "OutputSpec",
        "PermissionDenied",
        "Prediction",
        "Sample",
        "Sequence",
        "Tokenization",
        "TooLarge",
        "TopK",
        "Translation",
        "Unauthenticated",
        "Unavailable",
        "Unimplemented",
        "translate",
        "translate_async",
    ]


METHODS = ["attend", "attend_batch", "create_memory", "memories", "delete_memory", "models", "model"]


@pytest.mark.parametrize("method", [*METHODS, "close"])
def test_twins_take_the_same_arguments(method):
    """The asyncio client is the blocking one with `await`: the same arguments under the same documentation."""
    ours, twins = (getattr(client, method) for client in (AttentionClient, AsyncAttentionClient))
    assert inspect.signature(ours) == inspect.signature(twins)
    assert ours.__doc__ == twins.__doc__


def test_twins_of_a_stream():
    """By asyncio the sequences may also come from an asynchronous iterable; all else is the same."""
    ours, twins = (client.attend_many for client in (AttentionClient, AsyncAttentionClient))
    options, twin_options = (dict(inspect.signature(method).parameters) for method in (ours, twins))
    assert options.pop("sequences") != twin_options.pop("sequences")
    assert options == twin_options
    assert ours.__doc__.partition("Args:")[2] == twins.__doc__.partition("Args:")[2]


def test_text_in_weights_out(ask, target):
    """Text goes in; tokens, weights and predictions come out as NumPy arrays and plain tuples."""
    result = ask(target, "attend", "multi-head", text=SENTENCE, outputs=["weights", "predictions"])
    assert result.tokens == result.key_tokens == tuple(SENTENCE.split())
    assert result.weights.shape == (3, 7, 7)
    np.testing.assert_allclose(result.weights.sum(-1), 1, rtol=1e-6)
    assert [(p.name, p.label, p.row) for p in result.predictions] == [
        ("giver", "I", 1),
        ("recipient", "Tater", 1),
        ("object", "toy", 1),
    ]
    assert (result.model, result.version) == ("multi-head", 1)


def test_arrays_in_output_out(ask, target):
    """Arrays go in; a request without `outputs` returns `output`."""
    weights = np.exp(X @ X.T) / np.exp(X @ X.T).sum(-1, keepdims=True)
    np.testing.assert_allclose(ask(target, "attend", "dot-product", query=X).output, weights @ X, rtol=1e-5)


def test_batch_keeps_order_and_lengths(ask, target):
    """Sequences of any lengths and kinds travel in one message, and each gets its own result, in order."""
    batch = [X, X[:2], SENTENCE, Sequence(query=X[:1], key=X, causal="top_left")]
    results = ask(target, "attend_batch", "any", batch, outputs=["weights"])
    assert [result.weights.shape for result in results] == [(1, 5, 5), (1, 2, 2), (3, 7, 7), (1, 1, 5)]


def test_dense_batch_is_its_sequences(ask, target):
    """A dense array [B, T, D] is a batch of B sequences."""
    assert len(ask(target, "attend_batch", "any", np.stack([X, X, X]))) == 3


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (X, np.float32),
        (X.astype(np.float16), np.float16),
        (X.astype(np.float64), np.float32),
        (X.astype(">f4"), np.float32),
        (X.T.copy().T, np.float32),
        ([[1, 2], [3, 4]], np.float32),
    ],
)
def test_numbers_on_the_wire(target, service, given, sent):
    """float32 and float16 are sent unchanged, all further numbers as float32, in any byte order or layout."""
    with AttentionClient(target) as client:
        client.attend("any", query=given)
    query = codec.decode(service.requests[0].inputs[0].query)
    assert query.dtype == sent
    np.testing.assert_array_equal(query, np.asarray(given, sent))


def with_every_option() -> pb.AttendRequest:
    """Return a request as the client sends it when its caller sets every option."""
    wire = codec.encode
    return pb.AttendRequest(
        model="any",
        version=3,
        token_offsets=True,
        inputs=[
            pb.Sequence(
                query=wire(X),
                key=wire(X),
                value=wire(X),
                mask=pb.Mask(
                    causal=pb.Mask.CAUSAL_BOTTOM_RIGHT,
                    window=pb.Mask.Window(left=2, right=-1),
                    allowed=wire(np.ones((1, 5, 5), bool)),
                    bias=wire(np.zeros((5, 5), np.float32)),
                    layers=["5", "6"],
                ),
            )
        ],
        outputs=[
            pb.OutputSpec(name="output", data_type=pb.DATA_TYPE_FP32),
            pb.OutputSpec(
                name="weights",
                alias="last",
                heads=[0],
                rows=[-1],
                reduce=pb.OutputSpec.REDUCE_MAX,
                top_k=4,
                pool=pb.OutputSpec.POOL_FIRST,
                data_type=pb.DATA_TYPE_FP16,
                layers=["5"],
            ),
            pb.OutputSpec(name="weights", alias="mean", reduce=pb.OutputSpec.REDUCE_MEAN, data_type=pb.DATA_TYPE_FP32),
            pb.OutputSpec(
                name="weights",
                alias="parts",
                data_type=pb.DATA_TYPE_FP32,
                spans=[
                    pb.KeySpan(name="a", begin=0, end=2),
                    pb.KeySpan(name="b", begin=1, end=3, characters=True),
                ],
            ),
        ],
    )


def test_every_option_reaches_the_wire(target, service):
    """A request has exactly the fields that the caller set."""
    outputs = [
        "output",
        OutputSpec(
            "weights",
            alias="last",
            heads=[0],
            rows=[-1],
            reduce="max",
            top_k=4,
            data_type="FP16",
            layers=["5"],
            pool="first",
        ),
        {"name": "weights", "as": "mean", "reduce": "mean"},
        OutputSpec("weights", alias="parts", spans={"a": (0, 2), "b": {"begin": 1, "end": 3, "characters": True}}),
    ]
    with AttentionClient(target) as client:
        client.attend(
            "any",
            query=X,
            key=X,
            value=X,
            causal="bottom_right",
            window=(2, -1),
            allowed=np.ones((1, 5, 5), bool),
            bias=np.zeros((5, 5)),
            mask_layers=["5", "6"],
            outputs=outputs,
            version=3,
            token_offsets=True,
        )
    assert service.requests[0] == with_every_option()


def test_top_k(ask, target):
    """The largest of each row come as indices and values, under the name asked for."""
    outputs = ["weights", {"name": "weights", "as": "largest", "top_k": 2, "data_type": "FP16"}]
    result = ask(target, "attend", "any", query=X, outputs=outputs)
    largest = result["largest"]
    assert isinstance(largest, TopK)
    assert largest.values.dtype == np.float16
    np.testing.assert_array_equal(largest.indices[..., 0], result.weights.argmax(-1))


def test_outputs_that_were_not_requested(target):
    """Reading a stage that the request left out raises NotRequested, a KeyError and an AttributeError."""
    with AttentionClient(target) as client:
        result = client.attend("any", query=X, outputs=[{"name": "weights", "top_k": 1}])
    with pytest.raises(KeyError, match="no 'scores': add it to `outputs`"):
        result["scores"]
    with pytest.raises(AttributeError, match="no 'output': add it to `outputs`"):
        result.output  # noqa: B018
    with pytest.raises(NotRequested, match="only the largest weights"):
        result.weights  # noqa: B018
    assert not hasattr(result, "output")


def test_key_tokens_never_lie(target):
    """Keys carry the sequence's own tokens only where it attends to itself."""
    with AttentionClient(target) as client:
        outputs = ["weights"]
        own, other, vectors = client.attend_batch(
            "any",
            [
                "a b",
                Sequence(text="a b", memory_text="x y"),
                Sequence(text="a b", key=X[:2]),
            ],
            outputs=outputs,
        )
    assert own.key_tokens == ("a", "b")
    assert other.key_tokens == ("x", "y")
    assert vectors.key_tokens == ()


def test_token_offsets(target):
    """The result has token offsets when the request asks for offsets."""
    with AttentionClient(target) as client:
        assert client.attend("any", text="a b").token_offsets == ()
        assert client.attend("any", text="a b", token_offsets=True).token_offsets == ((0, 1), (1, 2))


@pytest.mark.parametrize(
    ("arguments", "field", "message"),
    [
        ({"query": [[1, 2], [3]]}, "inputs[0].query", "inhomogeneous"),
        ({"query": [["a"]]}, "inputs[0].query", "must hold numbers"),
        ({"query": X > 0}, "inputs[0].query", "holds bool"),
        ({"query": np.stack([X, X])}, "inputs[0].query", "attend_batch"),
        ({"query": X, "key": X + 1j}, "inputs[0].key", "complex64"),
        ({"query": X, "allowed": X}, "inputs[0].mask.allowed", "true = may attend"),
        ({"query": X, "causal": "yes"}, "inputs[0].mask.causal", "none, top_left, bottom_right"),
        ({"query": X, "window": (1.5, 2)}, "inputs[0].mask.window", "float"),
        ({"query": X, "outputs": "weights"}, "outputs", r"write \['weights'\]"),
        ({"query": X, "outputs": ["output", {"nam": "weights"}]}, "outputs[1]", "nam"),
        ({"query": X, "outputs": [OutputSpec("weights", data_type="FP8")]}, "outputs[0]", "FP32, FP16"),
        ({"query": X, "outputs": [OutputSpec("weights", heads=[-1])]}, "outputs[0]", "range"),
    ],
)
def test_arguments_without_a_wire_form(target, service, arguments, field, message):
    """An argument without a form on the wire is refused before the call, by the field's name."""
    with AttentionClient(target) as client, pytest.raises(InvalidRequest, match=message) as caught:
        client.attend("any", **arguments)
    assert caught.value.field == field
    assert service.requests == []


def test_models(ask, target):
    """Models are listed, and one is found by its name, with its manifest."""
    assert [model.name for model in ask(target, "models")] == ["aloud", "dot-product", "multi-head"]
    assert ask(target, "model", "multi-head").manifest.block == "multi_head"
    with pytest.raises(NotFound, match="there are aloud, dot-product, multi-head"):
        ask(target, "model", "nope")


def test_repr_is_short(target):
    """The repr of a result of any size is one line with its outputs."""
    with AttentionClient(target) as client:
        result = client.attend("multi-head", text=SENTENCE, outputs=["weights", "predictions"])
    assert repr(result) == "<AttendResult of multi-head 1: weights float32[3, 7, 7]; 3 predictions>"
