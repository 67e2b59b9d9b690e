"""A transformer of several layers: stages of sites, layers and the model, pairs, and predictions of `hidden`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import requests
from attention_client import AttentionClient, OutputSpec

from tests.refusals import refused
from tests.server import transformer
from tests.server.reference import CLOSE
from tests.server.transformer import CLASSES, HEADS, WORDS
from tests.serving import HANG, start_server
from tests.transports import TRANSPORTS

TEXT = "ein und zwanzig Katzen Hunde"
LENGTH = 5
LAYERS = ("0", "1", "2")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """The model, and a server of it."""
    folder = tmp_path_factory.mktemp("transformer")
    model = transformer.write(folder / "encoder/1")
    with start_server(folder) as running:
        yield model, running


@pytest.fixture(params=TRANSPORTS)
def transport(request, encoder, connect):
    return connect(request.param, encoder[1].rest, encoder[1].grpc)


@pytest.fixture
def model(encoder):
    return encoder[0]


def ask(transport, *specs, text=TEXT, **request):
    return transport.outputs("encoder", text=text, outputs=list(specs), **request)


@pytest.mark.parametrize("stage", ["q", "k", "v", "scores", "weights", "heads", "output", "contributions", "hidden"])
def test_a_stage_of_every_layer(transport, model, stage):
    """`*` returns a stage of every layer that gives it, named by layer; where one gives it, by its own name."""
    expected = {str(i): stages[stage] for i, stages in enumerate(model.layers(TEXT)) if gives(i, stage)}
    outputs = ask(transport, {"name": stage, "layers": ["*"]})
    assert list(outputs) == ([f"{stage}@{layer}" for layer in expected] if len(expected) > 1 else [stage])
    for found, value in zip(outputs.values(), expected.values(), strict=True):
        np.testing.assert_allclose(found, value, **CLOSE)


def gives(index, stage):
    """Return whether a layer gives a stage."""
    return stage not in ("output", "contributions", "hidden") or stage in transformer.STAGES[index]


def test_everything_at_once(transport, model):
    """Stages of all levels come in one answer, in the order of the request."""
    specs = [{"name": "hidden", "layers": ["1"], "as": "middle"}, "embeddings", "hidden", "weights", "predictions"]
    outputs = ask(transport, *specs)
    layers = model.layers(TEXT)
    assert list(outputs) == ["middle", "embeddings", "hidden", "weights"]
    np.testing.assert_allclose(outputs["middle"], layers[1]["hidden"], **CLOSE)
    np.testing.assert_allclose(outputs["embeddings"], model.embeddings(TEXT), **CLOSE)
    np.testing.assert_allclose(outputs["hidden"], layers[2]["hidden"], **CLOSE)
    np.testing.assert_allclose(outputs["weights"], layers[2]["weights"], **CLOSE)


def test_contributions_are_the_output_without_its_bias(transport, model):
    """The heads' contributions and the bias of M_O sum up to the output; options of heads and rows apply to them."""
    spec = {"name": "contributions", "layers": ["0"]}
    outputs = ask(
        transport,
        spec,
        spec | {"as": "one", "heads": [1], "rows": [-1, 0]},
        spec | {"as": "mean", "reduce": "mean", "pool": "mean"},
        {"name": "output", "layers": ["0"]},
    )
    whole = outputs["contributions"]
    assert whole.shape == (HEADS, LENGTH, transformer.WIDTH)
    np.testing.assert_allclose(whole.sum(0) + model.matrices["b0"], outputs["output"], **CLOSE)
    np.testing.assert_allclose(outputs["one"], whole[[1]][:, [-1, 0]], **CLOSE)
    np.testing.assert_allclose(outputs["mean"], whole.mean((0, 1))[None], **CLOSE)


@pytest.mark.parametrize(
    ("pool", "pooled"), [("mean", lambda x: x.mean(0)), ("first", lambda x: x[0]), ("last", lambda x: x[-1])]
)
@pytest.mark.parametrize("layer", LAYERS)
def test_hidden_pooled(transport, model, layer, pool, pooled):
    """`hidden` is pooled over the rows chosen: of the last layer it is what an embedding of the text is made of."""
    hidden = model.layers(TEXT)[int(layer)]["hidden"]
    spec = {"name": "hidden", "layers": [layer], "pool": pool}
    outputs = ask(transport, spec, spec | {"as": "some", "rows": [1, 3]})
    np.testing.assert_allclose(outputs["hidden"], pooled(hidden), **CLOSE)
    np.testing.assert_allclose(outputs["some"], pooled(hidden[[1, 3]]), **CLOSE)


def test_rows_of_the_last_layer_alone(transport, model):
    """Rows that are asked for alone are those of all rows, of hidden states and weights alike."""
    last = model.layers(TEXT)[2]
    pairs = {"name": "heads", "pairs": ["1.0", "0.1"], "rows": [4, 2]}  # of layers that have all rows
    outputs = ask(transport, {"name": "hidden", "rows": [3]}, {"name": "weights", "rows": [3]}, "embeddings", pairs)
    np.testing.assert_allclose(outputs["hidden"], last["hidden"][[3]], **CLOSE)
    np.testing.assert_allclose(outputs["weights"], last["weights"][:, [3]], **CLOSE)
    first, second = model.layers(TEXT)[:2]
    np.testing.assert_allclose(outputs["heads"], np.stack([second["heads"][0], first["heads"][1]])[:, [4, 2]], **CLOSE)
    np.testing.assert_allclose(outputs["embeddings"], model.embeddings(TEXT), **CLOSE)


def test_a_mask_that_leaves_rows_out(transport, model):
    """A request's mask applies at every layer; a row that may attend to nothing is not pooled."""
    allowed = np.ones((LENGTH, LENGTH), bool)
    allowed[:, 4] = False
    added = np.where(allowed, 0.0, -np.inf)
    outputs = ask(
        transport, {"name": "hidden", "pool": "mean"}, {"name": "weights", "layers": ["0"]}, mask={"allowed": allowed}
    )
    layers = model.layers(TEXT, added)
    np.testing.assert_allclose(outputs["hidden"], layers[2]["hidden"].mean(0), **CLOSE)
    np.testing.assert_allclose(outputs["weights"], layers[0]["weights"], **CLOSE)


@pytest.mark.parametrize("stage", ["weights", "scores", "entropy"])
def test_pairs_of_several_layers(transport, model, stage):
    """One output has the heads of pairs in their order, whichever layers they are of."""
    pairs = [(2, 1), (0, 0), (1, 1), (2, 0)]
    layers = model.layers(TEXT)
    for each in layers:
        each["entropy"] = -(each["weights"] * np.log(np.maximum(each["weights"], 1e-30))).sum(-1)
    spec = {"name": stage, "pairs": [f"{layer}.{head}" for layer, head in pairs]}
    outputs = ask(transport, spec, spec | {"as": "rows", "rows": [4, 2]}, spec | {"as": "mean", "reduce": "mean"})
    expected = np.stack([layers[layer][stage][head] for layer, head in pairs])
    np.testing.assert_allclose(outputs[stage], expected, **CLOSE)
    np.testing.assert_allclose(outputs["rows"], expected[:, [4, 2]], **CLOSE)
    np.testing.assert_allclose(outputs["mean"], expected.mean(0, keepdims=True), **CLOSE)


def test_the_largest_of_pairs(transport, model):
    """Keys that a layer's own mask hides come last among the top k, in pairs too."""
    layers = model.layers(TEXT)
    outputs = ask(
        transport,
        {"name": "scores", "layers": ["1"], "top_k": LENGTH},
        {"name": "scores", "as": "pairs", "pairs": ["1.0", "0.1"], "top_k": LENGTH},
    )
    causal = np.where(np.tri(LENGTH, dtype=bool), layers[1]["scores"], -np.inf)
    for row in range(LENGTH):
        order = np.argsort(-causal[:, row], axis=-1)[:, : row + 1]
        np.testing.assert_array_equal(outputs["scores"].indices[:, row, : row + 1], order)
        np.testing.assert_array_equal(outputs["pairs"].indices[0, row, : row + 1], order[0])
    np.testing.assert_array_equal(outputs["pairs"].indices[1], np.argsort(-layers[0]["scores"][1], axis=-1))


def rolled_out(layers):
    """Return the rollout of layers' weights [H, T, T] in float64, as the paper has it."""
    product = np.eye(layers[0].shape[-1])
    for weights in layers:
        own = 0.5 * weights.mean(0) + 0.5 * np.eye(len(product))
        product = own / own.sum(-1, keepdims=True) @ product
    return product


SPANS = {"first": [0, 2], "all": [0, LENGTH]}


def spans_of(weights):
    return np.stack([weights[..., begin:end].sum(-1) for begin, end in SPANS.values()], -1)


def test_folds(transport, model):
    """`fold` makes layers one after their heads: mean, maximum or rollout of all layers, or of those chosen, [T, S]."""
    weights = [stages["weights"] for stages in model.layers(TEXT)]
    every, some = np.stack(weights), np.stack(weights)[[0, 2]]
    first_rows = rolled_out(weights)[[3, 0]]
    cases = [
        ({"fold": "mean"}, every.mean((0, 1))),
        ({"fold": "max"}, every.mean(1).max(0)),
        ({"fold": "rollout"}, rolled_out(weights)),
        ({"fold": "mean", "reduce": "max", "layers": ["2", "0"]}, some.max(1).mean(0)),
        ({"fold": "max", "heads": [1], "layers": ["2", "0"], "rows": [-1, 2]}, some[:, 1].max(0)[[-1, 2]]),
        ({"fold": "rollout", "layers": ["1"]}, rolled_out(weights[1:2])),
        ({"fold": "rollout", "layers": ["2", "0"], "pool": "mean"}, rolled_out(some).mean(0)),
        ({"fold": "rollout", "rows": [3, 0]}, first_rows),
        ({"fold": "rollout", "rows": [3, 0], "pool": "last", "data_type": "FP16"}, first_rows[1].astype(np.float16)),
        ({"fold": "mean", "pool": "first"}, every.mean((0, 1))[0]),
        ({"fold": "max", "spans": SPANS}, spans_of(every.mean(1)).max(0)),
        ({"fold": "rollout", "spans": SPANS, "rows": [2]}, spans_of(rolled_out(weights))[[2]]),
    ]
    specs = [{"name": "weights", "as": str(i), **options} for i, (options, _) in enumerate(cases)]
    found = ask(transport, *specs, {"name": "weights", "as": "top", "fold": "rollout", "top_k": 2})
    alone = ask(transport, specs[7])  # the last layer computes these rows alone
    for i, (options, expected) in enumerate(cases):
        assert (found[str(i)].shape, found[str(i)].dtype) == (expected.shape, "f2" if "data_type" in options else "f4")
        np.testing.assert_allclose(found[str(i)], expected, **CLOSE, err_msg=str(options))
    np.testing.assert_allclose(alone["7"], first_rows, **CLOSE)
    order = np.argsort(-rolled_out(weights), -1, kind="stable")[:, :2]
    np.testing.assert_array_equal(found["top"].indices, order)


def test_masked_rows_and_keys_of_folds(transport):
    """A row that may attend to no key is zeros, and passes itself on in a rollout; a key hidden everywhere is last."""
    allowed = np.ones((LENGTH, LENGTH), bool)
    allowed[2] = allowed[:, 3] = False
    folds = [{"name": "weights", "as": fold, "fold": fold} for fold in ("mean", "max", "rollout")]
    top = {"name": "weights", "as": "top", "fold": "mean", "top_k": LENGTH}
    pooled = {"name": "weights", "as": "pooled", "fold": "rollout", "pool": "mean"}
    found = ask(transport, *folds, top, pooled, {"name": "weights", "layers": ["*"]}, mask={"allowed": allowed})
    weights = [found[f"weights@{layer}"].astype(np.float64) for layer in LAYERS]
    np.testing.assert_allclose(found["mean"], np.stack(weights).mean((0, 1)), **CLOSE)
    np.testing.assert_allclose(found["max"], np.stack(weights).mean(1).max(0), **CLOSE)
    np.testing.assert_allclose(found["rollout"], rolled_out(weights), **CLOSE)
    np.testing.assert_array_equal(found["rollout"][2], np.eye(LENGTH)[2])
    others = [0, 1, 3, 4]
    np.testing.assert_allclose(found["pooled"], rolled_out(weights)[others].mean(0), **CLOSE)
    assert (found["top"].indices[others, -1] == 3).all()


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        ({"name": "scores", "fold": "mean"}, "fold", "is for weights, not for scores"),
        ({"name": "weights", "fold": "mean", "pairs": ["0.1"]}, "fold", "not of pairs"),
        ({"name": "weights", "fold": "rollout", "heads": [1]}, "heads", "mean of all heads"),
        ({"name": "weights", "fold": "rollout", "reduce": "max"}, "reduce", "mean of all heads"),
        ({"name": "weights", "fold": "max", "layers": ["7"]}, "layers", "there is no layer '7'"),
        ({"name": "weights", "fold": "max", "heads": [2]}, "heads", "there is no head 2"),
        ({"name": "output"}, "name", "layer 2 gives no output; there is that of 0, 1"),
        ({"name": "contributions", "layers": ["1"]}, "layers", "layer 1 gives no contributions; there is that of 0"),
        ({"name": "contributions", "pairs": ["1.0"]}, "pairs", "layer 1 gives no contributions; there is that of 0"),
        ({"name": "hidden", "layers": ["3"]}, "layers", "there is no layer '3'; there is 0, 1, 2"),
        ({"name": "hidden", "heads": [0]}, "heads", "hidden has no heads"),
        ({"name": "hidden", "pairs": ["0.0"]}, "pairs", "hidden has no heads"),
        ({"name": "hidden", "top_k": 1}, "top_k", "not for hidden"),
        ({"name": "embeddings", "layers": ["*"]}, "layers", "of the model"),
        ({"name": "q", "pairs": ["1.0", "2.0"]}, "pairs", "q is [T, 4] for the pair '1.0' and [T, 3] for '2.0'"),
        ({"name": "weights", "pairs": ["2.2"]}, "pairs", "no head 2 for the pair '2.2'; layer 2 has 2"),
    ],
)
def test_what_a_layer_does_not_give(transport, spec, field, words):
    """A stage that a layer lacks is refused with the layers that give it; an option without meaning by its name."""
    with refused("INVALID_ARGUMENT", f"outputs[0].{field}", words):
        ask(transport, spec)


@pytest.mark.parametrize("top", [0, 2, 100])
def test_predictions_of_hidden(transport, model, top):
    """The head reads the last hidden states; `top` gives the most probable labels with their ids."""
    hidden = model.layers(TEXT)[2]["hidden"]
    result = transport.one("encoder", text=TEXT, outputs=[{"name": "predictions", "top": top}])
    read = [("token", row) for row in range(LENGTH)] + [("class", 0)]
    assert [(each["name"], each["row"]) for each in result["predictions"]] == read
    for each in result["predictions"]:
        labels = WORDS if each["name"] == "token" else CLASSES
        chances = model.chances(hidden[[each["row"]]], each["name"])[0]
        order = np.argsort(-chances, kind="stable")
        assert (each["id"], each["label"]) == (order[0], labels[order[0]])
        assert each["probability"] == pytest.approx(chances[order[0]], abs=1e-4)
        assert [one["id"] for one in each.get("top", ())] == order[: min(top, len(labels))].tolist()
        for one in each.get("top", ()):
            assert one["label"] == labels[one["id"]]
            assert one["probability"] == pytest.approx(chances[one["id"]], abs=1e-4)


def test_the_open_inference_protocol(encoder):
    """The metadata lists what the last layer gives; pooled hidden states and pairs are outputs with parameters."""
    model, server = encoder
    url = f"{server.url}/v2/models/encoder"
    listed = {each["name"]: each["shape"] for each in requests.get(url, timeout=HANG).json()["outputs"]}
    assert listed["hidden"] == listed["embeddings"] == [-1, -1, transformer.WIDTH]
    assert not {"output", "contributions"} & listed.keys()
    outputs = [
        {"name": "hidden", "parameters": {"pool": "mean"}},
        {"name": "weights", "parameters": {"pairs": "2.1,0.0"}},
        {"name": "contributions", "parameters": {"layers": "0"}},
        {"name": "flow", "parameters": {"stage": "weights", "fold": "rollout"}},
    ]
    text = {"name": "text", "datatype": "BYTES", "shape": [2], "data": [TEXT, "ein und"]}
    answer = requests.post(f"{url}/infer", json={"inputs": [text], "outputs": outputs}, timeout=HANG).json()
    found = {each["name"]: np.reshape(each["data"], each["shape"]) for each in answer["outputs"]}
    for i, words in enumerate((TEXT, "ein und")):
        layers, length = model.layers(words), len(words.split())
        np.testing.assert_allclose(found["hidden"][i], layers[2]["hidden"].mean(0), **CLOSE)
        pairs = np.stack([layers[2]["weights"][1], layers[0]["weights"][0]])
        np.testing.assert_allclose(found["weights"][i, :, :length, :length], pairs, **CLOSE)
        np.testing.assert_allclose(found["contributions"][i, :, :length], layers[0]["contributions"], **CLOSE)
        assert not found["weights"][i, :, length:].any()
        flow = rolled_out([stages["weights"] for stages in layers])
        np.testing.assert_allclose(found["flow"][i], np.pad(flow, (0, len(TEXT.split()) - length)), **CLOSE)


def test_file_scoring(encoder, tmp_path):
    """`score` writes one embedding a row, as wide as the model's vectors, and weights of all layers as one matrix."""
    model, server = encoder
    texts = [TEXT, "ein", "Hunde und Katzen"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    program = Path(sys.executable).with_name("attention-client")
    outputs = [{"name": "hidden", "pool": "mean"}, {"name": "weights", "fold": "rollout"}]
    command = [program, "score", tmp_path / "in.jsonl", tmp_path / "out.parquet"]
    command += [
        "--model",
        "encoder",
        "--tensors",
        "extension",
        "--outputs",
        json.dumps(outputs),
        "--target",
        server.grpc,
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=HANG)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.field("hidden").type.shape == [transformer.WIDTH]
    columns = table["hidden"].combine_chunks().to_numpy_ndarray(), table["weights"].to_pylist()
    for hidden, folded, text in zip(*columns, texts, strict=True):
        layers = model.layers(text)
        np.testing.assert_allclose(hidden, layers[2]["hidden"].mean(0), **CLOSE)
        np.testing.assert_allclose(folded, rolled_out([stages["weights"] for stages in layers]), **CLOSE)


def test_the_client(encoder):
    """The client takes pairs, top and folds, and reads the candidates."""
    model, server = encoder
    with AttentionClient(server.grpc) as client:
        outputs = [{"name": "weights", "pairs": ["1.0", "0.1"]}, {"name": "predictions", "top": 2}]
        result = client.attend("encoder", text=TEXT, outputs=outputs)
        folded = client.attend("encoder", text=TEXT, outputs=[OutputSpec("weights", fold="rollout")])
    layers = model.layers(TEXT)
    np.testing.assert_allclose(result.weights, np.stack([layers[1]["weights"][0], layers[0]["weights"][1]]), **CLOSE)
    assert [len(each.top) for each in result.predictions] == [2] * 6
    assert all(each.top[0] == (each.id, each.label, each.probability) for each in result.predictions)
    np.testing.assert_allclose(folded["weights"], rolled_out([stages["weights"] for stages in layers]), **CLOSE)
    assert folded._repr_html_() is None  # a notebook shows its numbers
