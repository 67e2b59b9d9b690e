"""A checkpoint cut into front, segments, sites and head computes what `transformers` computes in eager mode."""

from pathlib import Path

import numpy as np
import pytest
import torch
from attention_export.importing import ImportFailure
from attention_export.importing.transformer.cut import cut_source
from attention_export.importing.transformer.source import Source, load_source
from export.segment_runner import run_parts, session
from export.tiny_checkpoints import WORDS, save_model

TOLERANCE = 1e-5  # of the largest value
LENGTH = 23


def eager(source: Source, tokens: np.ndarray, **inputs: np.ndarray) -> dict[str, list[np.ndarray]]:
    model = source.model
    assert model.config._attn_implementation == "eager"
    with torch.no_grad():
        result = model(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.ones_like(torch.tensor(tokens)),
            output_hidden_states=True,
            output_attentions=True,
            **{name: torch.tensor(value) for name, value in inputs.items()},
        )
    last = getattr(result, "last_hidden_state", None)
    hidden = list(result.hidden_states)
    if last is not None:
        hidden[-1] = last
    return {
        "hidden": [each.numpy() for each in hidden],
        "weights": [each.numpy() for each in result.attentions],
        "logits": [result.logits.numpy()] if "logits" in result else [],
    }


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= TOLERANCE * np.abs(expected).max()


# Every kind is imported by the command and served in test_imported_models; cutting alone is tried in `make trials` too.
SHORT = ("bert",)
LONG = (
    "albert",
    "modernbert",
    "roberta",
    "distilbert",
    "electra",
    "nomic_bert",
    "esm",
    "mpnet",
    "deberta-v2",
    "xlm-roberta-xl",
    "eurobert",
)


@pytest.mark.parametrize("kind", [*SHORT, *(pytest.param(kind, marks=pytest.mark.long) for kind in LONG)])
def test_parts_compute_what_the_source_computes(kind: str, tmp_path: Path) -> None:
    """Hidden states of all layers and weights of all sites are those of eager attention, within 1e-5 of the largest."""
    save_model(tmp_path, kind)
    source = load_source(tmp_path)
    parts = cut_source(source)
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, WORDS, (2, LENGTH))
    types = (
        {"token_type_ids": rng.integers(0, source.config.type_vocab_size, tokens.shape)}
        if parts.target.takes_token_types
        else {}
    )
    expected = eager(source, tokens, **types)
    run = run_parts(parts, tokens, types.get("token_type_ids"))
    for name in ("hidden", "weights"):
        assert len(getattr(run, name)) == len(expected[name])
        for actual, wanted in zip(getattr(run, name), expected[name], strict=True):
            close(actual, wanted)
    # A row of ESM's embedding depends on how many tokens are masked; in all else a row depends on its own token.
    assert (parts.target.front_rows_dependent, any(parts.target.rows_dependent)) == (kind == "esm", False)
    assert np.median([weights.max(-1) for weights in run.weights]) > 0.25  # uniform is 0.04, and no order would matter


def test_a_segment_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    """A segment is written as equal bytes, as are those of layers that share parameters."""
    save_model(tmp_path, "albert")
    parts = cut_source(load_source(tmp_path)).target
    assert len({segment() for segment in (*parts.segments[1:-1], *parts.segments[1:-1])}) == 1


def test_heads_run_on_rows_of_hidden(tmp_path: Path) -> None:
    """Logits of a token classifier are its head of each row of the last hidden state."""
    save_model(tmp_path, "bert", task="ForTokenClassification", num_labels=5)
    source = load_source(tmp_path)
    assert source.task == "token-classification"
    parts = cut_source(source)
    assert parts.head is not None
    tokens = np.random.default_rng(0).integers(3, WORDS, (2, LENGTH))
    hidden = run_parts(parts, tokens).hidden[-1]
    (logits,) = session(parts.head()).run(None, {"hidden": hidden.reshape(-1, hidden.shape[-1])})
    (expected,) = eager(source, tokens)["logits"]
    close(logits.reshape(expected.shape), expected)


def test_a_part_beyond_the_size_of_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part whose parameters no ONNX file can hold is refused by name before anything is written."""
    monkeypatch.setattr("attention_export.importing.transformer.segment.MOST_BYTES", 20_000)
    save_model(tmp_path, "bert", num_hidden_layers=1, vocab_size=200)
    with pytest.raises(ImportFailure, match=r"^the embedding has .* GiB of parameters"):
        cut_source(load_source(tmp_path))


def test_an_attention_beside_the_interface_is_refused(tmp_path: Path) -> None:
    """A model whose attention `transformers` does not hand over is refused, and the adapters are named."""
    save_model(tmp_path, "megatron-bert")
    with pytest.raises(ImportFailure, match=r"beside the attention interface.*MPNet"):
        cut_source(load_source(tmp_path))
