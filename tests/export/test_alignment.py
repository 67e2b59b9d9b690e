"""`attention-export heads`: layers and heads ranked by their alignment error rate."""

import json
from pathlib import Path

import pytest
from attention_export.alignment import Pair, Score, rank_heads, read_pairs
from attention_export.cli import app
from attention_export.manifest import read_manifest
from attention_export.tasks.numerals import UNALIGNED, english, german, split_numbers
from typer.testing import CliRunner

from tests.server import small_translator as small

NUMBERS = Path(__file__).parents[2] / "models/cross-attention/1"


def gold_of(number):
    """Return a number in English and German with its links; those of "und" are possible."""
    words = german(number)
    links = [f"{word.source}-{i}" for i, word in enumerate(words) if word.source != UNALIGNED]
    for i, word in enumerate(words):
        if word.source == UNALIGNED:
            links += [f"{source}p{i}" for source in range(len(english(number)))]
    return " ".join(english(number)), " ".join(word.text for word in words), " ".join(links)


def test_the_head_that_aligns_numbers(tmp_path):
    """Of the embedded model the best head is the one that its training named, with an error rate of nearly zero."""
    held_out = split_numbers(read_manifest(NUMBERS).training.seed)[1][:30]
    lines = ["\t".join(gold_of(number)) for number in held_out]
    (tmp_path / "gold.tsv").write_text("\n".join(lines) + "\n")
    done = CliRunner().invoke(app, ["heads", str(NUMBERS), "--gold", str(tmp_path / "gold.tsv")])
    assert done.exit_code == 0, done.output
    shown = done.stdout
    scores = rank_heads(NUMBERS, tmp_path / "gold.tsv")
    training = read_manifest(NUMBERS).training.figures
    layer = read_manifest(NUMBERS).layers[0].name
    by_name = {score.name: score for score in scores}
    assert set(by_name) == {layer, *(f"{layer}.{head}" for head in range(4))}
    assert [score.error_rate for score in scores] == sorted(score.error_rate for score in scores)
    assert by_name[f"{layer}.{int(training['head'])}"].error_rate < 1 - training["alignment"] + 0.03
    assert shown.index(scores[0].name) < shown.index(scores[-1].name)
    assert f"{scores[0].error_rate:.3f}" in shown


def test_the_heads_of_an_encoder_decoder(tmp_path):
    """Every head of every cross site is scored by the links of its rows, from which the words are predicted."""
    folder = small.write(tmp_path / "translator/1")
    source, target = "a b c d", "f e d"
    weights = small.reference(small.source_tokens(source), small.target_tokens(target))["decoder.1.cross"]["weights"]
    keys = weights[1, :3].argmax(-1)
    links = [f"{key}-{row}" for row, key in enumerate(keys) if key < 4]  # the last token of a source is no word
    gold = {"memory_text": source, "text": target, "alignment": " ".join(links)}
    (tmp_path / "gold.jsonl").write_text(json.dumps(gold))
    scores = rank_heads(folder, tmp_path / "gold.jsonl")
    assert len(scores) == 2 * (1 + small.HEADS)
    best = next(score for score in scores if score.name == "decoder.1.cross.1")
    assert (best.error_rate, best.precision, best.recall, best.links) == (0, 1, 1, len(links))
    assert scores[0].error_rate == 0


def test_the_error_rate():
    """The rate of Och and Ney: a possible link costs no precision, and a sure one that is missing costs recall."""
    score = Score("head")
    pair = Pair("", "", "", frozenset({(0, 0), (1, 1)}), frozenset({(0, 0), (1, 1), (2, 1)}))
    score.add(frozenset({(0, 0), (2, 1), (3, 3)}), pair)
    assert score.error_rate == pytest.approx(1 - (1 + 2) / (3 + 2))
    assert (score.precision, score.recall) == (pytest.approx(2 / 3), 0.5)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a b\tc", "line 1: give source, target and alignment"),
        ("a b\tc\t0-1", "'0-1' is no link of 2 words with 1"),
        ("a b\tc\t0=0", "'0=0' is no link"),
        ("", "has no lines"),
    ],
)
def test_refused_files(tmp_path, line, words):
    """A line that is no pair with links of its words is refused by its number."""
    (tmp_path / "gold.tsv").write_text(line)
    with pytest.raises(ValueError, match=words):
        list(read_pairs(tmp_path / "gold.tsv"))


def test_a_model_without_another_sequence(tmp_path):
    """A model whose sites attend to their own sequence has nothing to align."""
    (tmp_path / "gold.tsv").write_text("a\tb\t0-0\n")
    with pytest.raises(ValueError, match="nothing can be aligned"):
        rank_heads(NUMBERS.parents[1] / "self-attention/1", tmp_path / "gold.tsv")
