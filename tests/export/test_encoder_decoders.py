"""Encoder-decoders are imported as two chains that are equal to their source, or are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from attention_export.importing import ImportFailure
from attention_export.importing.transformer import import_transformer
from attention_export.importing.transformer.comparison import Mismatch, compare
from attention_export.importing.transformer.runner import Tokens, VersionRunner
from attention_export.importing.transformer.source import load_source
from attention_export.manifest import read_manifest, write_manifest
from attention_proto.attention.v1.attention_pb2 import Manifest, Predictor, Side
from export.tiny_checkpoints import ENCODER_DECODERS, END, PAD, tiny_model, write_checkpoint
from export.tiny_versions import TinyVersions

SHORT = ("t5", "marian")  # further ones are imported and served in tests of the server
NAMES = ["encoder.0", "encoder.1", "decoder.0", "decoder.0.cross", "decoder.1", "decoder.1.cross"]
CROSS = ["cross_k_0", "cross_v_0", "cross_k_1", "cross_v_1"]
TASKS = {"t5": "ForSeq2SeqLM", "marian": "ForSeq2SeqLM"}  # further kinds are imported without a head


def results(version: Path, file: str) -> list[str]:
    return [each.name for each in onnx.load(version / file).graph.output]


@pytest.mark.parametrize(
    "kind", [kind if kind in SHORT else pytest.param(kind, marks=pytest.mark.long) for kind in ENCODER_DECODERS]
)
def test_an_encoder_decoder_is_two_chains(kind: str, tiny_versions: TinyVersions) -> None:
    """The import is equal to its source at every site; its manifest tells sides, masks and the start token.

    The last segment of the source gives k and v of every cross site, and the segment before a cross site q alone.
    """
    version = tiny_versions.version(kind, TASKS.get(kind, ""))
    manifest = read_manifest(version)
    assert manifest.parity.cases >= 8
    assert {"embeddings", "weights", "hidden", "output"} <= set(manifest.parity.max_abs_error)
    assert [layer.name for layer in manifest.layers] == NAMES
    sides = [Side.SIDE_SOURCE] * 2 + [Side.SIDE_TARGET, Side.SIDE_CROSS] * 2
    assert [layer.side for layer in manifest.layers] == sides
    assert [segment.side for segment in manifest.segments] == [Side.SIDE_SOURCE] * 3 + [Side.SIDE_TARGET] * 5
    assert not any(segment.rows_dependent for segment in manifest.segments)
    assert [layer.causal for layer in manifest.layers] == [side == Side.SIDE_TARGET for side in sides]
    relative = kind in ("t5", "mt5", "umt5")
    assert [layer.HasField("bias") for layer in manifest.layers] == [
        relative and side != Side.SIDE_CROSS for side in sides
    ]
    assert ["hidden" in layer.stages for layer in manifest.layers] == [side != Side.SIDE_CROSS for side in sides]
    assert manifest.text.start_token == ENCODER_DECODERS[kind]["decoder_start_token_id"]
    assert manifest.text.HasField("start_token") and manifest.text.max_tokens == manifest.text.max_memory_tokens == 80
    graphs = [results(version, segment.graph.name) for segment in manifest.segments]
    assert [[name for name in graph if name.startswith("cross_")] for graph in graphs] == [
        CROSS if index == 2 else [] for index in range(8)
    ]
    assert ["k" in graph for graph in graphs] == [True, True, False, True, False, True, False, False]


def test_an_embedding_of_both_sides_is_one_file(tiny_versions: TinyVersions) -> None:
    """T5's front is the file of the source's front too; Marian's sides have embeddings of their own."""
    text = read_manifest(tiny_versions.version("t5", TASKS["t5"])).text
    assert text.front == text.memory_front
    text = read_manifest(tiny_versions.version("marian", TASKS["marian"])).text
    assert text.front.sha256 != text.memory_front.sha256
    assert not text.HasField("memory_tokenizer")  # the checkpoint has one tokenizer


@pytest.mark.parametrize("kind", TASKS)
def test_greedy_steps_are_those_of_generate(kind: str, tiny_versions: TinyVersions) -> None:
    """The most probable token behind the last row, put behind the target step by step, gives `generate`'s tokens."""
    runner = VersionRunner(tiny_versions.version(kind, TASKS.get(kind, "")), kept_bytes=2**30)
    (predictor,) = runner.manifest.predictors
    assert (predictor.name, predictor.rows, predictor.vocabulary) == ("token", Predictor.ROWS_LAST, True)
    model = tiny_versions.model(kind, TASKS.get(kind, ""))
    model.generation_config.update(eos_token_id=None, forced_eos_token_id=None, bad_words_ids=None, pad_token_id=PAD)
    source = np.arange(7, 29)[None]
    expected = model.generate(torch.from_numpy(source), max_new_tokens=12, do_sample=False, num_beams=1)[0].tolist()
    found = [runner.manifest.text.start_token]
    while len(found) < len(expected):
        *_, target = runner.run([Tokens(source), Tokens(np.array([found]))])
        assert target.hidden is not None
        found.append(int(runner.predictions(target.hidden[:, -1])["token"].argmax()))
    assert found == expected


# Sabotage ------------------------------------------------------------------------------------------------------------


def another_start_token(manifest: Manifest) -> None:
    manifest.text.start_token = END + 4


def no_bias_in_the_encoder(manifest: Manifest) -> None:
    for layer in manifest.layers:
        if layer.side == Side.SIDE_SOURCE:
            layer.ClearField("bias")


def causal_cross_sites(manifest: Manifest) -> None:
    for layer in manifest.layers:
        layer.causal |= layer.side == Side.SIDE_CROSS


def a_decoder_that_sees_the_future(manifest: Manifest) -> None:
    for layer in manifest.layers:
        layer.causal = False


@pytest.mark.parametrize(
    ("kind", "change", "site", "stage"),
    [
        ("t5", another_start_token, "decoder.0", "embeddings"),
        ("t5", no_bias_in_the_encoder, "encoder.0", "weights"),
        ("marian", causal_cross_sites, "decoder.0.cross", "weights"),
        ("t5", a_decoder_that_sees_the_future, "decoder.0", "weights"),
    ],
)
def test_a_changed_manifest_is_refused(
    kind: str, change: Callable[[Manifest], None], site: str, stage: str, tiny_versions: TinyVersions, tmp_path: Path
) -> None:
    """The first site at which the version differs from its source is named."""
    folder = shutil.copytree(tiny_versions.version(kind, TASKS.get(kind, "")), tmp_path / "1")
    manifest = read_manifest(folder)
    change(manifest)
    write_manifest(folder, manifest)
    with pytest.raises(Mismatch) as refused:
        compare(load_source(tiny_versions.checkpoint(kind, TASKS[kind])), folder, lambda _: None)
    assert (refused.value.site, refused.value.stage) == (site, stage)
    assert f"site {site} (" in str(refused.value)


def test_swapped_heads_of_a_cross_site_are_refused(tiny_versions: TinyVersions, tmp_path: Path) -> None:
    """A source with two heads swapped in a cross attention has the same hidden states and logits, and other weights."""
    version = tiny_versions.version("marian", TASKS["marian"])
    model = tiny_versions.model("marian", TASKS["marian"])
    attention = model.model.decoder.layers[1].encoder_attn
    order = torch.arange(32).view(4, 8)[[0, 2, 1, 3]].flatten()
    with torch.no_grad():
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
            linear.weight.copy_(linear.weight[order])
            linear.bias.copy_(linear.bias[order])
        attention.out_proj.weight.copy_(attention.out_proj.weight[:, order])
    with pytest.raises(Mismatch) as refused:
        compare(load_source(write_checkpoint(tmp_path, model)), version, lambda _: None)
    assert (refused.value.site, refused.value.stage) == ("decoder.1.cross", "weights")


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "fields", "words"),
    [
        ("sequence-classification", {}, "--task base or seq2seq-lm"),
        (None, {"decoder_start_token_id": None}, "decoder_start_token_id is missing"),
    ],
)
def test_a_refusal_names_the_task_or_the_field(
    task: str | None, fields: dict[str, object], words: str, tmp_path: Path
) -> None:
    """A classifier's head of an encoder-decoder, and a checkpoint that says no start token, are refused in words."""
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tiny_model("bart"))
    config = json.loads((checkpoint / "config.json").read_text()) | fields
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(ImportFailure, match=words):
        import_transformer(checkpoint, tmp_path / "models", "refused", 1, task=task)
