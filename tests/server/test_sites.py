"""A transformer of sites and segments: stages equal NumPy, only what is asked runs, spoiled versions are refused."""

from collections import Counter

import numpy as np
import pytest
import requests
from attention_proto.attention.v1.attention_pb2 import File
from attention_server.contexts.store import HeldMemories, MemoryStore
from attention_server.domain.limits import Limits
from attention_server.domain.messages import NO_MASK, OutputSpec, Sequence
from attention_server.inference.engine.onnxruntime import OnnxRuntime
from attention_server.inference.engine.protocol import Run
from attention_server.repository.loader import RepositoryError, load
from serving import HANG, start_server

from tests.refusals import refused
from tests.server import small_transformer as small
from tests.server.small_transformer import HEADS, WIDTH, embed, reference

TEXT = "a b c d e f"
SITE = ("q", "k", "v", "scores", "weights", "entropy", "lse", "heads", "contributions", "output", "hidden")
EVERY = [{"name": name, "layers": ["*"]} for name in SITE]
MODELS = {"small": (), "second": (1,), "third": (2,)}  # the segments of each that depend on all rows
CLOSE = {"atol": 5e-5, "rtol": 5e-5}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of the model, and of two with a dependent segment."""
    folder = tmp_path_factory.mktemp("transformers")
    for name, dependent in MODELS.items():
        small.write(folder / name / "1", dependent=dependent)
    with start_server(folder) as running:
        yield running


@pytest.fixture(params=["grpc", "rest-json"])
def transport(request, server, connect):
    return connect(request.param, server.rest, server.grpc)


def compare(outputs, layers):
    for index, layer in enumerate(layers):
        for name, expected in layer.items():
            found = outputs[f"{name}@{index}"]
            assert found.shape == expected.shape, (name, index)
            np.testing.assert_allclose(found, expected, **CLOSE, err_msg=f"{name}@{index}")


@pytest.mark.parametrize(("model", "dependent"), MODELS.items(), ids=MODELS)
def test_every_stage_of_every_layer(transport, model, dependent):
    """Every stage of both layers equals float64, with segments whose rows depend on each other or not."""
    query = embed(TEXT)
    outputs = transport.outputs(model, text=TEXT, outputs=[*EVERY, {"name": "embeddings"}])
    compare(outputs, reference(query, dependent=dependent))
    np.testing.assert_allclose(outputs["embeddings"], query, **CLOSE)


def test_a_masked_request(transport):
    """A request's mask is added at every site to the site's own and its bias; a row without keys is zero."""
    rng = np.random.default_rng(3)
    allowed = rng.random((HEADS, 6, 6)) < 0.7
    allowed[:, 2] = False
    numbers = rng.standard_normal((1, 6, 6)).astype(np.float32)
    numbers[0, 4, :] = np.finfo(np.float32).min
    mask = {"allowed": allowed, "bias": numbers}
    outputs = transport.outputs("small", text=TEXT, outputs=EVERY, mask=mask)
    expected = reference(embed(TEXT), np.where(allowed, numbers.astype(np.float64), -np.inf))
    expected[0]["weights"][:, 4] = outputs["weights@0"][:, 4]  # scores vanish next to such a bias: see docs/models.md
    assert not outputs["weights@0"][:, 2].any()
    np.testing.assert_allclose(outputs["weights@0"], expected[0]["weights"], **CLOSE)
    np.testing.assert_allclose(outputs["weights@0"][:, 4].sum(-1), allowed[:, 4, :5].any(-1), **CLOSE)


def test_a_mask_of_some_layers(transport):
    """A mask with `layers` is for their sites alone, in sum with one for all, its heads and hidden rows included."""
    rng = np.random.default_rng(4)
    allowed = rng.random((HEADS, 6, 6)) < 0.7
    allowed[:, 3] = False
    bias = rng.standard_normal((1, 6, 6)).astype(np.float32)
    masks = {"mask": {"allowed": allowed, "layers": ["1"]}, "shared_mask": {"bias": bias}}
    spec = {"name": "weights", "layers": ["*"], "top_k": 2, "as": "top"}
    pooled = {"name": "weights", "layers": ["*"], "pool": "last", "as": "last"}
    asked = [*EVERY, spec, pooled, "embeddings"]
    sent = {"inputs": [{"text": TEXT, "mask": masks["mask"]}], "shared_mask": masks["shared_mask"]}
    (result,) = transport.attend("small", outputs=asked, **sent)["results"]
    of_layers = reference(embed(TEXT), (bias.astype(np.float64), np.where(allowed, bias.astype(np.float64), -np.inf)))
    compare(result["outputs"], of_layers)
    for layer, stages in enumerate(of_layers):
        largest = np.sort(stages["weights"], -1)[..., :-3:-1]
        np.testing.assert_allclose(result["outputs"][f"top@{layer}"].values, largest, **CLOSE)
        np.testing.assert_allclose(result["outputs"][f"last@{layer}"], stages["weights"][:, -1], **CLOSE)
    window = {"window": {"left": 1, "right": 0}, "layers": ["0"]}
    (result,) = transport.attend("small", outputs=EVERY, text=TEXT, mask=window)["results"]
    distance = np.arange(6) - np.arange(6)[:, None]
    near = np.where((distance <= 0) & (distance >= -1), 0.0, -np.inf)
    compare(result["outputs"], reference(embed(TEXT), (near, 0.0)))
    for mask, field, words in (
        ({"causal": "top_left", "layers": ["2"]}, "mask.layers", "there is no layer '2'"),
        ({"causal": "top_left", "layers": ["0", "0"]}, "mask.layers", "twice"),
        ({"layers": ["0"]}, "mask.layers", "there is no mask for these layers"),
        ({"allowed": np.ones((HEADS + 1, 6, 6), bool), "layers": ["0"]}, "mask.allowed", "broadcastable"),
    ):
        with refused("INVALID_ARGUMENT", None, words) as caught:
            transport.attend("small", text=TEXT, mask=mask, outputs=EVERY)
        assert caught.value.field == transport.at(field)


def test_masks_of_some_layers_in_the_open_inference_protocol(server):
    """The parameter `mask_layers` is of all masks of a request: those of parameters and those that are tensors."""
    query = embed(TEXT).astype(np.float32)
    inputs = [{"name": "query", "datatype": "FP32", "shape": [1, *query.shape], "data": query.ravel().tolist()}]
    allowed = {"name": "allowed", "datatype": "BOOL", "shape": [1, 1, 1, 6], "data": [True] * 3 + [False] * 3}
    outputs = [{"name": "weights", "parameters": {"layers": "*"}}]

    def infer(inputs, **parameters):
        document = {"inputs": inputs, "outputs": outputs, "parameters": parameters}
        return requests.post(f"{server.url}/v2/models/small/infer", json=document, timeout=HANG).json()

    near = np.where(np.arange(6) >= np.arange(6)[:, None] - 1, 0.0, -np.inf)
    first = np.where(np.arange(6) < 3, 0.0, -np.inf)
    for sent, parameters, added in (
        (inputs, {"window_left": 1, "mask_layers": "1"}, (0.0, near)),
        ([*inputs, allowed], {"mask_layers": "0"}, (first, 0.0)),
        ([*inputs, allowed], {"window_left": 1, "mask_layers": "0,1"}, (first + near, first + near)),
    ):
        found = {
            each["name"]: np.reshape(each["data"], each["shape"])[0] for each in infer(sent, **parameters)["outputs"]
        }
        for layer, stages in enumerate(reference(query.astype(np.float64), added)):
            np.testing.assert_allclose(found[f"weights@{layer}"], stages["weights"], **CLOSE)
    assert "parameters.mask_layers: there is no layer '2'" in infer(inputs, window_left=1, mask_layers="2")["error"]
    assert "parameters.mask_layers: there is no mask" in infer(inputs, mask_layers="0")["error"]


@pytest.mark.parametrize("model", MODELS)
def test_rows_asked_alone(transport, model):
    """Chosen rows of the last layer, over each stage, are those of all rows; also behind a dependent segment."""
    rows = [4, 1]
    names = [name for name in SITE if name not in ("k", "v")]
    every = transport.outputs(model, text=TEXT, outputs=[{"name": name} for name in names])
    for name in names:
        found = transport.outputs(model, text=TEXT, outputs=[{"name": name, "rows": rows}])[name]
        axis = every[name].ndim - (1 if name in ("entropy", "lse") else 2)
        np.testing.assert_allclose(found, every[name].take(rows, axis), atol=1e-6, rtol=1e-5, err_msg=name)
    first = [{"name": name, "rows": rows, "layers": ["0"]} for name in names]
    together = transport.outputs(model, text=TEXT, outputs=first)
    expected = reference(embed(TEXT), dependent=MODELS[model])[0]
    for name in names:
        axis = together[name].ndim - (1 if name in ("entropy", "lse") else 2)
        np.testing.assert_allclose(together[name], expected[name].take(rows, axis), **CLOSE, err_msg=name)


def test_vectors_in_place_of_a_text(transport):
    """Embeddings sent as `query`, alone or as a batch, give what the text gives."""
    batch = np.stack([embed(TEXT), embed("f e d c b a")]).astype(np.float32)
    results = transport.attend("small", query=batch, outputs=EVERY)["results"]
    assert len(results) == len(batch)
    for query, result in zip(batch, results, strict=True):
        compare(result["outputs"], reference(query.astype(np.float64)))


def test_vectors_that_are_keys_alone_are_read(transport):
    """A row that may attend to no key is a key of further rows: its vector is read, however large it is."""
    query = embed(TEXT).astype(np.float32)
    query[2] *= np.float32(1e16)
    allowed = np.ones((6, 6), bool)
    allowed[2] = False
    outputs = transport.outputs("small", query=query, mask={"allowed": allowed}, outputs=["weights"])
    expected = reference(query.astype(np.float64), np.where(allowed, 0, -np.inf))
    np.testing.assert_allclose(outputs["weights"], expected[1]["weights"], **CLOSE)
    query[2, 0] = np.nan
    with refused("INVALID_ARGUMENT", transport.at("query"), "must be finite"):
        transport.attend("small", query=query, mask={"allowed": allowed})


def test_pooled_pairs_count_the_rows_of_every_layer(transport):
    """A row that the mask leaves keys in one layer of the pairs, and none in another with a window, is pooled."""
    allowed = np.ones((6, 6), bool)
    allowed[5, 1:] = False
    spec = {"name": "weights", "pairs": ["0.1", "1.0"], "pool": "mean"}
    outputs = transport.outputs("small", text=TEXT, mask={"allowed": allowed}, outputs=[spec])
    layers = reference(embed(TEXT), np.where(allowed, 0, -np.inf))
    expected = [layers[0]["weights"][1].mean(0), layers[1]["weights"][0].mean(0)]
    np.testing.assert_allclose(outputs["weights"], expected, **CLOSE)


def test_hidden_keys_come_last(transport):
    """Of a causal site, and of a window, the keys that the site hides are behind all others in the top k."""
    spec = {"name": "weights", "top_k": 6, "layers": ["*"]}
    outputs = transport.outputs("small", text=TEXT, outputs=[spec])
    for layer, hides in enumerate((lambda t, s: s > t, lambda t, s: abs(t - s) >= small.WINDOW)):
        for row, keys in enumerate(outputs[f"weights@{layer}"].indices[0]):
            hidden = [hides(row, int(key)) for key in keys]
            assert hidden == sorted(hidden), (layer, row, keys)


def test_predictions_of_hidden(transport):
    """The head reads rows of the last hidden state."""
    hidden = reference(embed(TEXT))[-1]["hidden"] @ small.W["labels"]
    predictions = transport.one("small", text=TEXT, outputs=[{"name": "predictions"}])["predictions"]
    assert [each["label"] for each in predictions] == [small.LABELS[i] for i in hidden.argmax(-1)]


TOO_LONG = " ".join("a" for _ in range(small.MAX_TOKENS + 1))
REFUSED = [
    ({"text": TOO_LONG}, "text", "at most 9"),
    ({"query": np.ones((small.MAX_TOKENS + 1, WIDTH), np.float32)}, "query", "at most 9"),
    ({"text": "a", "key": np.ones((2, WIDTH), np.float32)}, "key", "attends to its own sequence"),
    ({"query": np.ones((2, WIDTH), np.float32), "value": np.ones((2, WIDTH), np.float32)}, "value", "its own sequence"),
    ({"text": "a", "memory": "1" * 32}, "memory", "its rows see what follows"),
    ({"text": "a", "extend": True}, "extend", "its rows see what follows"),
]


@pytest.mark.parametrize(("sequence", "field", "words"), REFUSED)
def test_what_a_transformer_cannot_take(transport, sequence, field, words):
    """A sequence beyond the last position, as text or as vectors, and keys of another sequence are refused by field."""
    with refused("INVALID_ARGUMENT", None, words) as error:
        transport.attend("small", **sequence)
    assert error.value.field == transport.at(field)


# --- only what is asked for runs -------------------------------------------------------------------------------------


class CountingGraph:
    """A graph that counts its runs under a name."""

    def __init__(self, graph, name, runs):
        self.graph, self.name, self.runs = graph, name, runs
        self.inputs, self.outputs, self.nodes = graph.inputs, graph.outputs, graph.nodes

    def run(self, outputs, feeds, run):
        self.runs[self.name] += 1
        return self.graph.run(outputs, feeds, run)

    def run_path(self, outputs, feeds, run):
        self.runs[self.name] += 1
        return self.graph.run_path(outputs, feeds, run)


class CountingEngine(OnnxRuntime):
    """onnxruntime that counts the runs of each file, and how often each was opened."""

    def __init__(self, folder):
        super().__init__("cpu", threads=1)
        self.names = {path.read_bytes(): path.stem for path in folder.glob("*.onnx")}
        self.opened, self.runs = Counter(), Counter()

    def open(self, content):
        self.opened[self.names[content]] += 1
        return CountingGraph(super().open(content), self.names[content], self.runs)


RUNS = [
    ([OutputSpec("embeddings")], {"front": 1}),
    ([OutputSpec("q", layers=("0",))], {"front": 1, "segment-0": 1}),
    ([OutputSpec("heads", layers=("0",))], {"front": 1, "segment-0": 1, "bias": 1, "attend-masked": 1}),
    ([OutputSpec("weights", layers=("0",))], {"front": 1, "segment-0": 1, "bias": 1, "explain-masked": 1}),
    (
        [OutputSpec("hidden", layers=("0",))],
        {"front": 1, "segment-0": 1, "bias": 1, "attend-masked": 1, "segment-1": 1},
    ),
    (
        [OutputSpec("weights", layers=("1",))],
        {"front": 1, "segment-0": 1, "bias": 1, "attend-masked": 1, "segment-1": 1, "explain-masked": 1},
    ),
    (
        [OutputSpec("hidden")],
        {"front": 1, "segment-0": 1, "bias": 1, "attend-masked": 2, "segment-1": 1, "segment-2": 1},
    ),
]


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """The model, loaded, and the engine that counts."""
    folder = small.write(tmp_path_factory.mktemp("counted") / "small/1")
    engine = CountingEngine(folder)
    return load(folder, engine, 2**30), engine


def test_a_file_is_opened_once(counted):
    """A file that several sites name is opened once."""
    _, engine = counted
    assert set(engine.opened.values()) == {1}
    assert len(engine.opened) == len(engine.names)


@pytest.mark.parametrize(("specs", "runs"), RUNS, ids=[specs[0].name + "".join(specs[0].layers) for specs, _ in RUNS])
def test_only_what_is_asked_for_runs(counted, specs, runs):
    """Segments and sites run up to what is asked for, and weights are made at the sites where they are asked for."""
    model, engine = counted
    plan = model.plan(tuple(specs))
    limits = Limits(sequences=1, scores_bytes=2**20, answer_bytes=2**20, memory_ttl=1.0)
    ((prepared, _),) = model.checker.prepare(Sequence(text=TEXT), plan, NO_MASK, HeldMemories(MemoryStore(1)), limits)
    engine.runs.clear()
    model.answer([prepared], plan.plan, Run())()
    assert engine.runs == Counter(runs)


# --- versions that are refused ---------------------------------------------------------------------------------------


def offer(manifest, stage):
    manifest.layers[1].stages.append(stage)


SPOILED = {
    "a missing tensor": (
        {"segment_1": small.segment_1(inputs={"carry_1": small.rows(WIDTH)})},
        "segment-1.onnx takes carry_1, which no graph gives before it",
    ),
    "tokens in a segment": (
        {"segment_1": small.segment_1(inputs={"tokens": ["B", "T"]})},
        "segment-1.onnx takes tokens, which no graph gives before it",
    ),
    "two axes of positions": (
        {"segment_1": small.segment_1(square=True)},
        "carry_1 has a further axis that follows the number of rows",
    ),
    "a row that depends on others": (
        {"segment_1": small.segment_1(dependent=True)},
        "segment-1.onnx: a row of",
    ),
    "a wrong width": (
        {"change": lambda manifest: manifest.layers[1].MergeFrom(type(manifest.layers[1])(head_dim=3))},
        "4 wide",
    ),
    "no width of a head": (
        {"change": lambda manifest: setattr(manifest.layers[1], "head_dim", 0)},
        "layer 1 says no head_dim",
    ),
    "a scale that is no number": (
        {"change": lambda manifest: setattr(manifest.layers[1], "scale", float("nan"))},
        "layer 1 has a scale of nan",
    ),
    "logits of another width": (
        {"change": lambda manifest: setattr(manifest, "logits_dim", 4)},
        "head.onnx: logits is 3 wide, but the manifest says 4",
    ),
    "logits of two predictors": (
        {"change": lambda manifest: manifest.predictors.add(name="kind", rows="ROWS_ALL", labels=small.LABELS)},
        "logits are those of one predictor, and the manifest has 2",
    ),
    "too few segments": (
        {"change": lambda manifest: manifest.segments.pop() and manifest.segments.pop()},
        "1 segments for 2",
    ),
    "a layer's name twice": (
        {"change": lambda manifest: manifest.layers[1].MergeFrom(type(manifest.layers[1])(name="0"))},
        "two layers have the name '0'",
    ),
    "a layer's name that stands for all": (
        {"change": lambda manifest: manifest.layers[1].MergeFrom(type(manifest.layers[1])(name="*"))},
        "layer 1 of the manifest has the name '*'",
    ),
    "a file with two hashes": (
        {"change": lambda manifest: manifest.segments[0].graph.MergeFrom(File(name="segment-1.onnx"))},
        "manifest.json names segment-1.onnx with two hashes",
    ),
    "a stage that no graph gives": (
        {
            "segment_2": small.graph(
                {"heads": small.rows(WIDTH)}, {"output": small.rows(WIDTH)}, [("Neg", ["heads"], ["output"])]
            )
        },
        "layer 1 offers hidden, but no graph behind it gives hidden",
    ),
}


def test_spoiled_versions(tmp_path):
    """A version whose graphs do not fit together, or that hides a dependence between rows, is refused with its reason;
    declared, the dependence is served."""
    small.write(tmp_path / "small/1")
    for version, (files, _) in enumerate(SPOILED.values(), 2):
        small.write(tmp_path / "small" / str(version), **files)
    with start_server(tmp_path) as running:
        index = requests.post(f"{running.url}/v2/repository/index", timeout=HANG).json()
    reasons = {int(entry["version"]): entry["reason"] for entry in index}
    assert reasons.pop(1) == ""
    for version, (kind, (_, words)) in enumerate(SPOILED.items(), 2):
        assert words in reasons[version], (kind, reasons[version])


@pytest.mark.parametrize(("reach", "is_served"), [(599, True), (598, False)])
def test_a_bias_reaches_to_the_longest_text(tmp_path, monkeypatch, reach, is_served):
    """A table of biases that ends before the distance of the longest text is refused at load, not in a request."""
    length = 600
    for name in ("positions", "turn"):
        monkeypatch.setitem(small.W, name, np.ones((small.BASE + length, WIDTH), np.float32))
    monkeypatch.setitem(small.W, "table", np.ones((HEADS, 2 * reach + 1), np.float32))
    nodes = [
        ("Unsqueeze", ["query_positions", "last"], ["from"]),
        ("Sub", ["key_positions", "from"], ["distance"]),
        ("Add", ["distance", "most"], ["column"]),
        ("Gather", ["table", "column"], ["found"], {"axis": 1}),
        ("Unsqueeze", ["found", "first"], ["bias"]),
    ]
    constants = {"table": small.W["table"], "most": np.int64(reach), "first": np.array([0]), "last": np.array([1])}
    shapes = {"query_positions": ["T"], "key_positions": ["S"]}
    bias = small.graph(shapes, {"bias": [1, HEADS, "T", "S"]}, nodes, constants)
    folder = small.write(
        tmp_path / "small/1", change=lambda manifest: setattr(manifest.text, "max_tokens", length), bias=bias
    )
    if is_served:
        load(folder, OnnxRuntime("cpu", 1), 2**30)
    else:
        with pytest.raises(RepositoryError) as refusal:
            load(folder, OnnxRuntime("cpu", 1), 2**30)
        assert "Gather" in refusal.value.log_reason
