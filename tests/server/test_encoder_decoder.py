"""An encoder-decoder: stages of both chains equal NumPy, only what is asked runs, a kept source is read as its text."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import requests
from attention_client import AttentionClient, translate
from attention_client import OutputSpec as Asked
from attention_client.cli.commands import app
from attention_proto.attention.v1.attention_pb2 import Side
from attention_server.contexts.memory import Memory
from attention_server.contexts.store import MemoryStore
from attention_server.domain.limits import Limits
from attention_server.domain.messages import NO_MASK, OutputSpec, Sequence
from attention_server.inference.engine.onnxruntime import OnnxRuntime
from attention_server.inference.engine.protocol import Run
from attention_server.repository.loader import RepositoryError, load
from serving import HANG, ROOT, start_server
from typer.testing import CliRunner

from tests.refusals import refused
from tests.server import small_translator as small
from tests.server.reference import statistics
from tests.server.small_translator import CROSS, DECODER, ENCODER, HEADS, SITES, source_tokens, target_tokens
from tests.server.test_sites import CountingEngine
from tests.transports import TRANSPORTS

SOURCE, TARGET = "a b c d e", "f e d"
SITE = ("q", "k", "v", "scores", "weights", "entropy", "lse", "heads", "contributions", "output", "hidden")
EVERY = [{"name": name, "layers": ["*"]} for name in SITE]
CLOSE = {"atol": 5e-5, "rtol": 5e-5}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of the model, and of a copy of it."""
    folder = tmp_path_factory.mktemp("translators")
    for name in ("translator", "copy"):
        small.write(folder / name / "1")
    shutil.copytree(ROOT / "models/cross-attention", folder / "numbers")
    with start_server(folder) as running:
        yield running


@pytest.fixture(params=["grpc", "rest-json"])
def transport(request, server, connect):
    return connect(request.param, server.rest, server.grpc)


def ask(transport, *outputs, text=TARGET, memory_text=SOURCE, **fields):
    return transport.outputs("translator", text=text, memory_text=memory_text, outputs=list(outputs), **fields)


def expected(source=SOURCE, target=TARGET, added=0.0):
    return small.reference(source_tokens(source), target_tokens(target), added)


def compare(outputs, sites):
    for site, stages in sites.items():
        for name, value in stages.items():
            found = outputs[f"{name}@{site}"]
            assert found.shape == value.shape, (name, site)
            np.testing.assert_allclose(found, value, **CLOSE, err_msg=f"{name}@{site}")


def test_every_stage_of_every_site(transport):
    """Every stage of encoder, decoder and cross sites equals float64; tokens are those of source and target."""
    result = transport.one("translator", text=TARGET, memory_text=SOURCE, outputs=[*EVERY, "embeddings", "predictions"])
    sites = expected()
    compare(result["outputs"], sites)
    assert len(result["outputs"]) == sum(map(len, sites.values())) + 1
    np.testing.assert_allclose(result["outputs"]["embeddings"], small.embed(target_tokens(TARGET)), **CLOSE)
    assert (result["tokens"], result["memory_tokens"]) == (target_tokens(TARGET), source_tokens(SOURCE))
    (prediction,) = result["predictions"]
    chances = small.next_token(sites["decoder.1"]["hidden"])
    assert (prediction["label"], prediction["row"]) == (small.WORDS[chances.argmax()], len(TARGET.split()))
    assert prediction["probability"] == pytest.approx(chances.max(), abs=1e-5)


@pytest.mark.parametrize("text", [{}, {"text": ""}, {"token_ids": [small.START]}], ids=["left out", "empty", "ids"])
def test_a_target_that_begins(transport, text):
    """Without a text so far, the target is the start token; ids are taken as they are."""
    outputs = transport.outputs("translator", memory_text=SOURCE, outputs=["hidden", "weights"], **text)
    sites = expected(target="")
    np.testing.assert_allclose(outputs["hidden"], sites["decoder.1"]["hidden"], **CLOSE)
    np.testing.assert_allclose(outputs["weights"], sites["decoder.1.cross"]["weights"], **CLOSE)


def test_folds(transport):
    """Without `layers`, a fold is of all sites like the last, a rollout of the last self-attention; else two differ."""
    sites = {name: expected()[name]["weights"] for name in SITES}
    specs = [{"name": "weights", "as": fold, "fold": fold} for fold in ("max", "rollout")]
    source = {"name": "weights", "as": "source", "fold": "mean", "layers": ["encoder.*"]}
    found = ask(transport, *specs, source)
    np.testing.assert_allclose(found["max"], np.stack([sites[name].mean(0) for name in CROSS]).max(0), **CLOSE)
    np.testing.assert_allclose(found["source"], np.stack([sites[name].mean(0) for name in ENCODER]).mean(0), **CLOSE)
    product = 1.0
    for name in DECODER:
        own = sites[name].mean(0) + np.eye(sites[name].shape[-1])
        product = own / own.sum(-1, keepdims=True) @ (np.eye(len(own)) * product if np.isscalar(product) else product)
    np.testing.assert_allclose(found["rollout"], product, **CLOSE)
    words = "[T, T] for layer 'decoder.0' and [T, S] for 'decoder.0.cross'"
    with refused("INVALID_ARGUMENT", "outputs[0].layers", words):
        ask(transport, {"name": "weights", "fold": "mean", "layers": ["decoder.0.cross", "decoder.0"]})
    with refused("INVALID_ARGUMENT", "outputs[0].fold", "layer decoder.1.cross reads another sequence"):
        ask(transport, {"name": "weights", "fold": "rollout", "layers": ["decoder.1.cross"]})


@pytest.mark.parametrize(
    ("layers", "sites"),
    [
        (["encoder.*"], ENCODER),
        (["decoder.*"], DECODER),
        (["decoder.*.cross"], CROSS),
        (["decoder.1.cross", "encoder.*"], ("decoder.1.cross", *ENCODER)),
        (["*"], SITES),
    ],
)
def test_layers_by_part(transport, layers, sites):
    """A star stands for one part of a name, so that `decoder.*` leaves the cross sites out."""
    outputs = ask(transport, {"name": "weights", "layers": layers})
    assert set(outputs) == {f"weights@{site}" for site in sites}
    compare(outputs, {site: {"weights": expected()[site]["weights"]} for site in sites})


def test_pairs(transport):
    """Pairs of one shape come as one output, by names or by parts; of two shapes they are refused, with both."""
    spec = {"name": "weights", "pairs": ["decoder.*.cross.1", "decoder.0.cross.0"], "rows": [-1, 0]}
    sites = expected()
    heads = [sites["decoder.0.cross"]["weights"][1], sites["decoder.1.cross"]["weights"][1]]
    heads.append(sites["decoder.0.cross"]["weights"][0])
    np.testing.assert_allclose(ask(transport, spec)["weights"], np.stack(heads)[:, [-1, 0]], **CLOSE)
    with refused("INVALID_ARGUMENT", "outputs[0].pairs", "[T, T] for the pair 'decoder.0.1' and [T, S]"):
        ask(transport, {"name": "weights", "pairs": ["decoder.0.1", "decoder.0.cross.1"]})
    with refused("INVALID_ARGUMENT", "outputs[0].pairs", "[S, S] for the pair 'encoder.0.1' and [T, T]"):
        ask(transport, {"name": "scores", "pairs": ["encoder.0.1", "decoder.0.1"]})


@pytest.mark.parametrize(
    ("site", "rows"), [("encoder.0", [5, 1]), ("encoder.1", [5, 1]), ("decoder.0", [3, 1]), ("decoder.1.cross", [3, 1])]
)
def test_rows_and_pooling(transport, site, rows):
    """Rows are those of the site's own queries: of the source in the encoder; each stage of them is that of all."""
    names = [name for name in SITE if name not in ("k", "v") and (name != "hidden" or site not in CROSS)]
    outputs = ask(transport, *({"name": name, "layers": [site], "rows": rows} for name in names))
    stages = expected()[site]
    for name in names:
        axis = stages[name].ndim - (1 if name in ("entropy", "lse") else 2)
        np.testing.assert_allclose(outputs[name], stages[name].take(rows, axis), **CLOSE, err_msg=name)
    pooled = ask(transport, {"name": "output", "layers": [site], "pool": "mean"})["output"]
    np.testing.assert_allclose(pooled, stages["output"].mean(0), **CLOSE)


def test_a_source_is_kept_as_it_is(transport, server):
    """A kept source was encoded without changes: over it sites of the target are changed, those of the source not."""
    with AttentionClient(server.grpc) as client:
        memory = client.create_memory("translator", memory_text=SOURCE).id
    outputs, target = [{"name": "output", "layers": ["decoder.1"]}], [{"layers": ["decoder.*"], "heads": [0]}]
    sent = ask(transport, *outputs, ablate=target)["output"]
    kept = transport.outputs("translator", text=TARGET, memory=memory, outputs=outputs, ablate=target)["output"]
    np.testing.assert_allclose(kept, sent, **CLOSE)
    for change in ({"ablate": [{"layers": ["*"], "heads": [0]}]}, {"score_temperature": 2.0}):
        with refused("INVALID_ARGUMENT", next(iter(change)), "send the text that it was made of"):
            transport.outputs("translator", text=TARGET, memory=memory, outputs=outputs, **change)
        changed = ask(transport, *outputs, **change)["output"]
        assert np.abs(changed - sent).max() > 1e-3


def test_statistics_of_each_kind_of_site(transport):
    """Separators are the special tokens of each site's keys: the source's end, the target's start."""
    names = ("encoder.1", "decoder.1", "decoder.1.cross")
    outputs = ask(transport, {"name": "statistics", "layers": list(names)}, {"name": "received", "layers": list(names)})
    ends, starts = [len(source_tokens(SOURCE)) - 1], [0]
    for name, special in zip(names, (ends, starts, ends), strict=True):
        weights = expected()[name]["weights"]
        of_site = statistics(weights, list(range(weights.shape[1])), special)
        np.testing.assert_allclose(outputs[f"statistics@{name}"], of_site, **CLOSE, err_msg=name)
        np.testing.assert_allclose(outputs[f"received@{name}"], weights.sum(1), **CLOSE, err_msg=name)
    with refused("INVALID_ARGUMENT", "outputs[0].pairs", "[T, T] for the pair 'decoder.0.1' and [T, S]"):
        ask(transport, {"name": "statistics", "pairs": ["decoder.0.1", "decoder.0.cross.1"]})


@pytest.mark.parametrize("kind", TRANSPORTS)
def test_alignment(server, connect, kind):
    """An alignment has for each row the key with the largest mean weight of the heads, as pairs and in Pharaoh's form;
    a row that may attend to nothing has none."""
    transport = connect(kind, server.rest, server.grpc)
    pairs = {"name": "alignment", "pairs": ["decoder.*.cross.1", "decoder.1.cross.0"], "as": "pairs"}
    some = {"name": "alignment", "heads": [1], "rows": [-1, 0], "as": "some"}
    every = {"name": "alignment", "layers": ["*"]}
    allowed = np.ones((4, 6), bool)
    allowed[2] = False
    found = ask(transport, pairs, some, every, mask={"allowed": allowed})
    sites = expected(added=np.where(allowed, 0, -np.inf))
    weights = {site: sites[site]["weights"] for site in CROSS}
    mean = (weights[CROSS[0]][1] + weights[CROSS[1]][1] + weights[CROSS[1]][0]) / 3
    for name, rows, of in (
        ("pairs", [0, 1, 3], mean),
        ("some", [3, 0], weights[CROSS[1]][1]),
        (f"alignment@{CROSS[0]}", [0, 1, 3], weights[CROSS[0]].mean(0)),
        (f"alignment@{CROSS[1]}", [0, 1, 3], weights[CROSS[1]].mean(0)),
    ):
        links = [{"source": int(of[row].argmax()), "target": row} for row in rows]
        pharaoh = " ".join(f"{link['source']}-{link['target']}" for link in links)
        assert found[name] == {"links": links, "pharaoh": pharaoh}


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        ({"layers": ["decoder.0"]}, "layers", "decoder.0 gives no alignment; there is that of decoder.0.cross"),
        ({"reduce": "mean"}, "reduce", "not for alignment, whose heads are reduced by their mean"),
        ({"pairs": ["encoder.0.1"]}, "pairs", "encoder.0 gives no alignment"),
    ],
)
def test_refused_alignments(transport, spec, field, words):
    """A site whose keys are of its own sequence has no alignment; options of tensors have no meaning for it."""
    with refused("INVALID_ARGUMENT", f"outputs[0].{field}", words):
        ask(transport, {"name": "alignment"} | spec)


def test_alignments_of_files_and_clients(server, tmp_path):
    """The client reads links and their text; `score` has a column of Pharaoh's form, and so has Open Inference."""
    texts = [(SOURCE, TARGET), ("a b", "e")]
    weights = [expected(*pair)[CROSS[1]]["weights"].mean(0) for pair in texts]
    pharaoh = [" ".join(f"{key}-{row}" for row, key in enumerate(each.argmax(-1))) for each in weights]
    with AttentionClient(server.grpc) as client:
        results = [client.attend("translator", text=t, memory_text=s, outputs=["alignment"]) for s, t in texts]
    assert [str(result.alignment) for result in results] == pharaoh
    assert results[0].alignment.links[1] == (weights[0][1].argmax(), 1)
    rows = [json.dumps({"memory_text": source, "text": target}) for source, target in texts]
    (tmp_path / "in.jsonl").write_text("\n".join(rows))
    program = Path(sys.executable).with_name("attention-client")
    for out in ("out.parquet", "out.jsonl"):
        command = [program, "score", tmp_path / "in.jsonl", tmp_path / out]
        command += ["--model", "translator", "--outputs", "alignment", "--target", server.grpc]
        subprocess.run(command, check=True, capture_output=True, timeout=HANG)
    assert pq.read_table(tmp_path / "out.parquet")["alignment"].to_pylist() == pharaoh
    scored = [json.loads(line)["alignment"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert scored == pharaoh
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [2], "data": [pair[i] for pair in texts]}
        for i, name in enumerate(("memory_text", "text"))
    ]
    body = {"inputs": inputs, "outputs": [{"name": "alignment"}]}
    (found,) = requests.post(f"{server.url}/v2/models/translator/infer", json=body, timeout=HANG).json()["outputs"]
    assert (found["datatype"], found["data"]) == ("BYTES", pharaoh)


def test_a_mask_is_for_the_cross_sites(transport):
    """`allowed` and `bias` hide positions of the source from the target; the chains' own sites are as they were."""
    rng = np.random.default_rng(3)
    allowed = rng.random((HEADS, 4, 6)) < 0.6
    allowed[:, 2] = False
    bias = rng.standard_normal((1, 4, 6)).astype(np.float32)
    mask = {"allowed": allowed, "bias": bias}
    sites = expected(added=np.where(allowed, bias, -np.inf))
    outputs = ask(transport, *EVERY, mask=mask)
    compare(outputs, sites)
    top = ask(
        transport,
        {"name": "weights", "top_k": 6},
        {"name": "weights", "layers": ["encoder.0"], "top_k": 6, "as": "e"},
        mask=mask,
    )
    for row, keys in enumerate(top["weights"].indices[0]):
        hidden = [not allowed[0, row, key] for key in keys]
        assert hidden == sorted(hidden)
    assert top["e"].indices.shape == (HEADS, 6, 6)


def test_a_kept_source(transport, server):
    """A memory of the source gives what its text gives, and steps over it give the rows of the target at once."""
    with AttentionClient(server.grpc) as client:
        memory = client.create_memory("translator", memory_text=SOURCE)
        again = client.create_memory("translator", memory_text=SOURCE)
    assert memory.id == again.id
    assert (memory.length, list(memory.tokens)) == (6, source_tokens(SOURCE))
    assert memory.size_bytes == 6 * 2 * len(CROSS) * small.WIDTH * 4
    target = [{"name": name, "layers": ["decoder.*", "decoder.*.cross"]} for name in SITE if name != "hidden"]
    target.append({"name": "hidden", "layers": ["decoder.*"]})
    whole = ask(transport, *target)
    kept = transport.one("translator", text=TARGET, memory=memory.id, outputs=target)
    assert kept["memory_tokens"] == source_tokens(SOURCE)
    for name, value in whole.items():
        np.testing.assert_array_equal(kept["outputs"][name], value, err_msg=name)
    words = TARGET.split()
    for length in range(len(words) + 1):
        step = transport.outputs(
            "translator",
            text=" ".join(words[:length]),
            memory=memory.id,
            outputs=[{"name": "weights", "rows": [-1]}, {"name": "hidden", "rows": [-1]}],
        )
        np.testing.assert_allclose(step["weights"][:, 0], whole["weights@decoder.1.cross"][:, length], **CLOSE)
        np.testing.assert_allclose(step["hidden"][0], whole["hidden@decoder.1"][length], **CLOSE)


def test_a_target_goes_on_behind_its_prefix(transport, server):
    """A memory holds a source and a target so far: each word behind it has the rows that it has in the whole target."""
    with AttentionClient(server.grpc) as client:
        memory = client.create_memory("translator", memory_text=SOURCE)
        before = {"id": memory.id, "prefix_length": 0}
    own, cross = ("scores", "weights", "heads", "output"), ("weights", "heads")
    outputs = [{"name": name, "layers": ["decoder.*"]} for name in (*own, "hidden")]
    outputs += [{"name": name, "layers": ["decoder.*.cross"]} for name in cross]
    outputs.append({"name": "weights", "as": "weights of all", "fold": "max", "layers": ["decoder.*"]})
    whole = ask(transport, *outputs)
    sent = [{"outputs": outputs[:1]}, *({"text": word, "outputs": outputs} for word in TARGET.split())]
    for row, step in enumerate(sent):  # the start token is in the first one
        result = transport.one("translator", memory=before["id"], extend=True, **step)
        before = result["memory"]
        assert before["prefix_length"] == row + 1
        for name, value in result["outputs"].items():
            expected_rows = whole[name][row] if value.ndim == 2 else whole[name][:, row]
            of_keys = name.startswith(("scores", "weights")) and not name.endswith("cross")
            expected_rows = expected_rows[..., : row + 1] if of_keys else expected_rows
            np.testing.assert_allclose(value[0] if value.ndim == 2 else value[:, 0], expected_rows, **CLOSE)
    with AttentionClient(server.grpc) as client:
        kept = next(each for each in client.memories("translator") if each.id == before["id"])
    assert (kept.source_length, kept.prefix_length, kept.length) == (6, len(sent), 6 + len(sent))
    assert list(kept.tokens) == source_tokens(SOURCE) + target_tokens(TARGET)
    rollout = {"name": "weights", "fold": "rollout"}
    with refused("INVALID_ARGUMENT", "outputs[0].fold", "the whole text; send it without a kept prefix"):
        transport.attend("translator", memory=before["id"], text="a", outputs=[rollout])


def test_a_mask_of_some_cross_sites(transport, server):
    """A mask is for the cross sites that its layers name; a target that is kept under it is no other's."""
    allowed = np.arange(6) < 2
    mask = {"allowed": allowed, "layers": ["decoder.1.cross"]}
    spec = [{"name": "weights", "layers": ["decoder.*.cross"]}]
    whole, found = ask(transport, *spec), ask(transport, *spec, mask=mask)
    np.testing.assert_array_equal(found["weights@decoder.0.cross"], whole["weights@decoder.0.cross"])
    scores = expected()["decoder.1.cross"]["scores"][..., :2]
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    weights = np.concatenate([powers / powers.sum(-1, keepdims=True), np.zeros((HEADS, 4, 4))], -1)
    np.testing.assert_allclose(found["weights@decoder.1.cross"], weights, **CLOSE)
    for name in ("encoder.0", "decoder.1", "*"):
        with refused("INVALID_ARGUMENT", None, "is for cross sites, not for") as caught:
            ask(transport, *spec, mask=mask | {"layers": [name]})
        assert caught.value.field == transport.at("mask.layers")
    with AttentionClient(server.grpc) as client:
        memory = client.create_memory("translator", memory_text=SOURCE)
        sent = {"text": "f", "memory": memory, "extend": True, "allowed": allowed, "outputs": ["hidden"]}
        kept = [
            client.attend("translator", **sent, mask_layers=layers).memory.id
            for layers in (["decoder.0.cross"], ["decoder.1.cross"], [], ["decoder.1.cross"])
        ]
    assert len(set(kept)) == 3
    assert kept[1] == kept[3]


def test_spans_of_characters(transport, server):
    """Characters are those of the text that the keys of a site are of; behind a prefix, those of the text alone."""
    sites = expected()
    spans = {"c d": {"begin": 4, "end": 7, "characters": True}, "first": [0, 2]}
    layers = ["encoder.1", "decoder.1.cross"]
    found = ask(transport, *[{"name": "weights", "as": each, "layers": [each], "spans": spans} for each in layers])
    for site in layers:
        weights = sites[site]["weights"]
        summed = np.stack([weights[..., 2:4].sum(-1), weights[..., :2].sum(-1)], -1)
        np.testing.assert_allclose(found[site], summed, **CLOSE)
    with AttentionClient(server.grpc) as client:
        source = client.create_memory("translator", memory_text=SOURCE).id
    prefix = transport.one("translator", memory=source, text="f", extend=True, outputs=["hidden"])["memory"]["id"]
    spans = {"d": {"begin": 2, "end": 3, "characters": True}, "[START]": [0, 1]}
    own = {"name": "weights", "layers": ["decoder.1"], "spans": spans}
    outputs = transport.outputs("translator", memory=prefix, text="e d", outputs=[own])
    np.testing.assert_allclose(outputs["weights"], sites["decoder.1"]["weights"][:, 2:, [3, 0]], **CLOSE)
    cross, beyond = {**own, "layers": ["decoder.1.cross"]}, {"begin": 2, "end": 4, "characters": True}
    between = {"begin": 1, "end": 2, "characters": True}
    for spec, sent, words in (
        (cross, {"text": "e d"}, "'d' counts characters, but the keys are of a memory"),
        (own, {"token_ids": [5, 6]}, "'d' counts characters, but the keys are of no text"),
        (own | {"spans": {"end": beyond}}, {"text": "e d"}, "'end' ends at character 4; the text has 3"),
        (own | {"spans": {"between": between}}, {"text": "e d"}, "'between' has no token"),
        (own | {"spans": {"all": [0, 5]}}, {"text": "e d"}, "'all' ends at 5; there are 4 keys"),
    ):
        with refused("INVALID_ARGUMENT", "outputs[0].spans", words):
            transport.attend("translator", memory=prefix, outputs=[spec], **sent)


@pytest.mark.parametrize(
    ("pair", "rows", "keys"),
    [
        ("encoder.0.1", source_tokens(SOURCE), source_tokens(SOURCE)),
        ("decoder.1.0", target_tokens(TARGET), target_tokens(TARGET)),
        ("decoder.1.cross.0", target_tokens(TARGET), source_tokens(SOURCE)),
    ],
    ids=str,
)
def test_pairs_have_the_names_of_their_site(server, tmp_path, pair, rows, keys):
    """Heads of pairs have rows and keys of the chain that their site is of: in the result, and in a picture."""
    with AttentionClient(server.grpc) as client:
        asked = [Asked("weights", alias="chosen", pairs=[pair]), Asked("scores", pairs=[pair])]
        result = client.attend("translator", text=TARGET, memory_text=SOURCE, outputs=asked)
    assert result.axes("chosen") == result.axes("scores") == (tuple(rows), tuple(keys))
    drawn = tmp_path / "drawn.svg"
    options = ["--model", "translator", "--memory-text", SOURCE, "--pairs", pair, "--svg", drawn]
    done = CliRunner().invoke(app, ["plot", TARGET, *map(str, options), "--target", server.grpc])
    assert done.exit_code == 0, done.output
    texts = re.findall("<!-- (.*) -->", drawn.read_text("utf-8"))
    assert Counter(texts) >= Counter([*rows, *keys, pair])


def test_spans_of_generated_words(server):
    """Each generated word has the weights that its row has on the spans of the source; a baseline is subtracted."""
    spans = {"begin": (0, 2), "end": {"begin": 2, "end": 6}}
    with AttentionClient(server.grpc) as client:
        memory, other = (client.create_memory("translator", memory_text=text) for text in (SOURCE, "e e e e e"))
        asked = ["weights", Asked("weights", alias="parts", spans=spans)]
        for step in client.generate("translator", memory=memory, tokens=3, outputs=asked):
            weights = step.result["weights"]
            summed = np.stack([weights[..., :2].sum(-1), weights[..., 2:].sum(-1)], -1)
            np.testing.assert_allclose(step.result["parts"], summed, rtol=1e-6)
        own, behind = (
            client.attend("translator", text=TARGET, memory=each, outputs=asked[1:])["parts"]
            for each in (memory, other)
        )
        owed = Asked("weights", alias="parts", spans=spans, baseline=other)
        found = client.attend("translator", text=TARGET, memory=memory, outputs=[owed])["parts"]
        np.testing.assert_allclose(found, own - behind, atol=1e-6)


def test_mixed_lengths_together(transport):
    """Sequences of mixed lengths in one request, some alike, have the answers that each has alone."""
    texts = [("a b", "f"), ("c d", "e"), ("a b c d e f", ""), ("e", "a b c"), ("b a", "d")]
    inputs = [{"memory_text": source, "text": target} for source, target in texts]
    results = transport.attend("translator", inputs=inputs, outputs=EVERY)["results"]
    for (source, target), result in zip(texts, results, strict=True):
        compare(result["outputs"], expected(source, target))


VECTORS = np.ones((2, small.WIDTH), np.float32)
REFUSED = {
    "no source": ({"text": "a"}, "memory_text", "needs its source; give memory_text"),
    "a source too long": ({"memory_text": "a " * 12}, "memory_text", "has 13 tokens; this model reads at most 12"),
    "a target too long": ({"memory_text": "a", "text": "a " * 9}, "text", "has 10 tokens; this model reads at most 9"),
    "a key": ({"query": VECTORS, "key": VECTORS}, "key", "makes keys and values of its source itself"),
    "a value": ({"text": "a", "memory_text": "a", "value": VECTORS}, "value", "goes with key"),
    "a text and a query": ({"query": VECTORS, "text": "a", "memory_text": "a"}, "query", "exactly one of query, text"),
    "an extension without a handle": (
        {"memory_text": "a", "extend": True},
        "extend",
        "goes with memory, a kept source",
    ),
    "two sources": ({"memory_text": "a", "memory": "0" * 32}, "memory", "only one of memory_text and memory"),
    "a causal mask": ({"memory_text": "a", "mask": {"causal": "top_left"}}, "mask.causal", "give allowed or bias"),
    "a mask of a target": (
        {"memory_text": "a", "text": "a b", "mask": {"allowed": np.ones((3, 3), bool)}},
        "mask.allowed",
        "[2, 3, 2]",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(transport, kind):
    """Each field that has no meaning is refused by its name, with what would do."""
    sequence, field, words = REFUSED[kind]
    with refused("INVALID_ARGUMENT", None, words) as error:
        transport.attend("translator", outputs=["weights"], **sequence)
    assert error.value.field == transport.at(field)


def test_refused_memories(transport, server):
    """A memory is of its model; it has no sites of the source; and it is made of a text alone."""
    with AttentionClient(server.grpc) as client:
        memory = client.create_memory("translator", memory_text=SOURCE)
        with pytest.raises(ValueError, match="keeps a source of text"):
            client.create_memory("translator", key=VECTORS)
    with refused("NOT_FOUND", transport.at("memory"), "keeps no memory"):
        transport.attend("copy", text="a", memory=memory.id, outputs=["weights"])
    with refused("INVALID_ARGUMENT", transport.at("memory"), "weights of layer encoder.0 is computed from the source"):
        transport.attend(
            "translator", text="a", memory=memory.id, outputs=[{"name": "weights", "layers": ["encoder.0"]}]
        )
    with refused(
        "INVALID_ARGUMENT", "outputs[0].layers", "decoder.1.cross gives no hidden; there is that of encoder.0"
    ):
        ask(transport, {"name": "hidden", "layers": ["decoder.1.cross"]})


def test_the_open_inference_protocol(server):
    """Sources and targets are inputs of texts; answers of several lengths are padded by what each site reads."""
    url = f"{server.url}/v2/models/translator"
    described = requests.get(url, timeout=HANG).json()
    assert [each["name"] for each in described["inputs"]][:3] == ["query", "text", "memory_text"]
    texts = [("a b c", "f e"), ("d", "")]
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [2], "data": [pair[i] for pair in texts]}
        for i, name in enumerate(("memory_text", "text"))
    ]
    outputs = [{"name": "weights"}, {"name": "e", "parameters": {"stage": "weights", "layers": "encoder.0"}}]
    answer = requests.post(f"{url}/infer", json={"inputs": inputs, "outputs": outputs}, timeout=HANG).json()
    found = {each["name"]: np.reshape(each["data"], each["shape"]) for each in answer["outputs"]}
    for i, (source, target) in enumerate(texts):
        sites = expected(source, target)
        for name, value in (("weights", sites["decoder.1.cross"]["weights"]), ("e", sites["encoder.0"]["weights"])):
            rows, keys = value.shape[1:]
            np.testing.assert_allclose(found[name][i, :, :rows, :keys], value, **CLOSE)
            assert not found[name][i, :, rows:].any()


@pytest.mark.parametrize("source", [SOURCE, "f", "b a c"])
def test_translation(server, source):
    """`translate` says the most probable tokens behind the start token until an end token, or the longest target."""
    with AttentionClient(server.grpc) as client:
        found = translate(client, "translator", source)
    tokens, complete = ["[START]"], False
    rows = []
    while len(tokens) <= small.MAX_TARGET and not complete:
        sites = small.reference(source_tokens(source), tokens)
        token = small.WORDS[small.next_token(sites["decoder.1"]["hidden"]).argmax()]
        complete = token == "[END]"
        if not complete:
            tokens.append(token)
            rows.append(sites["decoder.1.cross"]["weights"][:, -1])
    assert (found.words, found.complete) == (tuple(tokens[1:]), complete)
    assert str(found) == " ".join(tokens[1:])
    assert found.memory_tokens == tuple(source_tokens(source))
    np.testing.assert_allclose(found.weights, np.reshape(rows, (-1, HEADS, len(source.split()) + 1)), **CLOSE)


@pytest.mark.parametrize(
    ("layer", "layers", "queries", "keys"),
    [
        ("", list(CROSS), target_tokens(TARGET), source_tokens(SOURCE)),
        ("decoder.0", list(DECODER), target_tokens(TARGET), target_tokens(TARGET)),
        ("encoder.1", list(ENCODER), source_tokens(SOURCE), source_tokens(SOURCE)),
    ],
)
def test_pictures_name_what_a_site_reads(server, tmp_path, layer, layers, queries, keys):
    """`plot` draws the layers of one kind, with the tokens of the source or the target at rows and columns."""
    program = Path(sys.executable).with_name("attention-client")
    command = [program, "plot", "--model", "translator", TARGET, "--memory-text", SOURCE, "--layer", layer]
    command += ["--html", tmp_path / "page.html", "--target", server.grpc]
    subprocess.run(command, check=True, capture_output=True, timeout=HANG)
    drawn = re.search(r'\{"format".*\}(?=</script>|\n|;)', (tmp_path / "page.html").read_text())
    document = json.JSONDecoder().raw_decode(drawn[0])[0]
    assert ([each["name"] for each in document["layers"]], document["queries"], document["keys"]) == (
        layers,
        queries,
        keys,
    )


NAMED = {
    "encoder.1": (source_tokens(SOURCE), source_tokens(SOURCE)),
    "decoder.0": (target_tokens(TARGET), target_tokens(TARGET)),
    "decoder.0.cross": (target_tokens(TARGET), source_tokens(SOURCE)),
}


def test_results_name_what_a_site_reads(server):
    """The client names rows and keys by the site; `key_tokens` are those of the one kind that was asked for."""
    with AttentionClient(server.grpc) as client:
        ask = partial(client.attend, "translator", text=TARGET, memory_text=SOURCE)
        every = ask(outputs=[{"name": "weights", "layers": list(NAMED)}])
        for layer, (queries, keys) in NAMED.items():
            one = ask(outputs=[{"name": "weights", "layers": [layer]}])
            assert one.key_tokens == tuple(keys)
            assert one.axes("weights") == every.axes(f"weights@{layer}") == (tuple(queries), tuple(keys))
    assert every.key_tokens == tuple(source_tokens(SOURCE))


SOURCES = [
    {"memory_token_ids": [small.WORDS.index(token) for token in source_tokens(SOURCE)]},
    {"memory_text": f"{SOURCE} f e d c b a f", "truncate": "right"},
]


@pytest.mark.parametrize("source", SOURCES, ids=["ids", "cut"])
def test_sources_in_other_forms(transport, source):
    """A source may be ids of tokens, or a text that is cut; its last token stays."""
    result = transport.one("translator", text=TARGET, outputs=["weights"], **source)
    tokens = result["memory_tokens"]
    assert tokens == (source_tokens(SOURCE) if "truncate" not in source else source_tokens(f"{SOURCE} f e d c b a"))
    assert len(tokens) <= small.MAX_SOURCE
    sites = small.reference(tokens, target_tokens(TARGET))
    np.testing.assert_allclose(result["outputs"]["weights"], sites[CROSS[1]]["weights"], **CLOSE)


def test_alignment_of_a_block(transport, server):
    """A block that attends to another text has an alignment too, over its text as over a memory of it."""
    texts = {"text": "vier", "memory_text": "four thousand"}
    outputs = ["alignment", "weights", {"name": "alignment", "pairs": ["0.1", "0.3"], "as": "two"}]
    result = transport.one("numbers", outputs=outputs, **texts)
    weights = result["outputs"]["weights"]
    for name, of in (("alignment", weights.mean(0)), ("two", weights[[1, 3]].mean(0))):
        links = [{"source": int(key), "target": row} for row, key in enumerate(of.argmax(-1))]
        assert result["outputs"][name]["links"] == links
    with AttentionClient(server.grpc) as client:
        memory = client.create_memory("numbers", memory_text="four thousand")
    kept = transport.one("numbers", text="vier", memory=memory.id, outputs=outputs[:1])
    assert kept["outputs"]["alignment"] == result["outputs"]["alignment"]


# --- only what is asked for runs -------------------------------------------------------------------------------------

ENCODED = {"front": 1, "segment-0": 1, "segment-1": 1, "segment-2": 1, "bias": 1, "attend-01": 1, "attend-00": 1}
RUNS = [
    (OutputSpec("embeddings"), {"front": 1}, {"front": 1}),
    (OutputSpec("weights", layers=("encoder.0",)), {"front": 1, "segment-0": 1, "bias": 1, "attend-11": 1}, None),
    (
        OutputSpec("weights", layers=("decoder.0",)),
        {"front": 1, "segment-3": 1, "attend-11": 1},
        {"front": 1, "segment-3": 1, "attend-11": 1},
    ),
    (
        OutputSpec("weights", layers=("decoder.0.cross",)),
        Counter(ENCODED) + Counter({"front": 1, "segment-3": 1, "attend-01": 1, "segment-4": 1, "attend-10": 1}),
        {"front": 1, "segment-3": 1, "attend-01": 1, "segment-4": 1, "attend-10": 1},
    ),
    (
        OutputSpec("hidden"),
        Counter(ENCODED)
        + Counter({"front": 1, "attend-01": 2, "attend-00": 2} | {f"segment-{i}": 1 for i in range(3, 8)}),
        {"front": 1, "attend-01": 2, "attend-00": 2} | {f"segment-{i}": 1 for i in range(3, 8)},
    ),
]


def test_only_what_is_asked_for_runs(tmp_path):
    """A chain of which nothing is asked does not run, and over a memory the source never does."""
    folder = small.write(tmp_path / "translator/1")
    engine = CountingEngine(folder)
    model = load(folder, engine, 2**30)
    store, tokens = MemoryStore(2**20), model.memory_reader.read(SOURCE, "")
    engine.runs.clear()
    kept = model.project_memory(None, None, tokens, Run())
    assert engine.runs == Counter(ENCODED)
    store.put(Memory("kept", model.name, model.version, kept, tokens, 60.0, model.digest))
    limits = Limits(sequences=1, scores_bytes=2**20, answer_bytes=2**20, memory_ttl=1.0)
    for spec, runs, over_memory in RUNS:
        plan = model.plan((spec,))

        def count(sequence, plan=plan):
            ((prepared, _),) = model.checker.prepare(sequence, plan, NO_MASK, store, limits)
            engine.runs.clear()
            model.answer([prepared], plan.plan, Run())()
            return engine.runs

        assert count(Sequence(text=TARGET, memory_text=SOURCE)) == Counter(runs), spec
        if over_memory is not None:
            assert count(Sequence(text=TARGET, memory="kept")) == Counter(over_memory), spec


# --- versions that are refused ---------------------------------------------------------------------------------------


def without_cross(manifest):
    for layer in manifest.layers:
        layer.side = Side.SIDE_TARGET if layer.side == Side.SIDE_CROSS else layer.side


def rotated(manifest):
    layers = [*manifest.layers[1:], manifest.layers[0]]
    del manifest.layers[:]
    manifest.layers.extend(layers)


SPOILED = {
    "a cross site without a source": (
        lambda manifest: [setattr(layer, "side", Side.SIDE_CROSS) for layer in manifest.layers],
        "the first site is one of them",
    ),
    "a source in which no site is read": (without_cross, "a source that no site attends to"),
    "sites of the source behind": (rotated, "sites or segments of the source behind those of the target"),
    "a segment too few": (lambda manifest: manifest.segments.pop(), "has 4 segments for 4 sites of one chain"),
    "no front of the source": (lambda manifest: manifest.text.ClearField("memory_front"), "lacks the front"),
    "a source's end that gives no keys": (
        lambda manifest: manifest.segments[2].graph.CopyFrom(manifest.segments[7].graph),
        "no segment of the source gives cross_k_0, cross_k_1, cross_v_0, cross_v_1",
    ),
    "a stage of a layer that ends later": (
        lambda manifest: manifest.segments[5].graph.CopyFrom(manifest.segments[6].graph),
        "decoder.0 offers hidden, but no graph behind it gives hidden",
    ),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_a_manifest_that_does_not_fit(tmp_path, kind):
    """Sites and segments that stand in no order of two chains are refused when the version is loaded."""
    change, words = SPOILED[kind]
    folder = small.write(tmp_path / "translator/1", change)
    with pytest.raises(RepositoryError, match=words):
        load(folder, OnnxRuntime("cpu", 1), 2**30)
