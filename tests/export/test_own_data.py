"""Training on user data: results, resuming a killed run, the command."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from attention_client import AttentionClient, InvalidRequest
from attention_export.cli import app
from attention_export.own_data import CheckpointError, Options, own_data
from attention_export.own_data.rows import read_data
from attention_export.own_data.vocabulary import make_tokenizer, split_words
from attention_proto.attention.v1.attention_pb2 import Predictor
from serving import start_server
from typer.testing import CliRunner

from tests.export.own_rows import (
    FILLERS,
    generate,
    lookup,
    near,
    review,
    same,
    signal,
    summed,
    train,
    weights,
    which_first,
    write,
)

KILLED_AT = 130  # rounds have 50 steps: the second checkpoint exists, the third does not


class TestLearning:
    @pytest.mark.parametrize(
        ("make", "count", "options", "at_least"),
        [
            pytest.param(which_first, 500, Options("multi_head", steps=700), 0.95, id="order of words"),
            pytest.param(summed, 400, Options("multi_head", steps=700), 0.95, id="a label for each word"),
            pytest.param(signal, 400, Options("self_attention", width=32, steps=500), 0.95, id="vectors"),
            pytest.param(lookup, 500, Options("cross_attention", steps=800), 0.95, id="question and memory"),
            pytest.param(near, 500, Options("cross_attention", heads=2, width=32, steps=800), 0.8, id="two widths"),
            pytest.param(signal, 400, Options("dot_product", steps=400), 0.65, id="vectors as they are"),
        ],
    )
    def test_every_block_learns(self, tmp_path, make, count, options, at_least):
        """Each kind of data is learned: held-out accuracy is far above that of the most frequent label."""
        trained = train(generate(tmp_path, make, count), options)
        figures = trained.training.figures
        assert figures["label.accuracy"] >= at_least
        assert figures["label.majority"] < at_least - 0.1
        assert trained.model.block.name == options.block

    def test_several_labels_have_separate_figures(self, tmp_path):
        """The plain dot product learns several labels, and each has its own figures."""
        trained = train(generate(tmp_path, review, 300), Options("dot_product", heads=2, epochs=60, held_out=0.25))
        record = trained.training
        assert {record.figures[f"{name}.accuracy"] for name in ("sentiment", "topic")} == {1.0}
        assert record.figures.keys() >= {"loss", "best_step", "sentiment.majority", "topic.majority"}
        assert (record.task, record.train_examples, record.held_out_examples) == ("data", 225, 75)
        assert record.steps == len(trained.losses) <= 60 * 8
        assert [(p.name, list(p.labels)) for p in trained.model.predictors] == [
            ("sentiment", ["negative", "positive"]),
            ("topic", ["film", "food"]),
        ]
        assert record.parameters == sum(weight.numel() for weight in weights(trained))

    @pytest.mark.parametrize(("make", "rows"), [(summed, Predictor.ROWS_ALL), (signal, Predictor.ROWS_MEAN)])
    def test_rows_that_are_read(self, tmp_path, make, rows):
        """A tagger's predictor reads each row, a classifier's the mean."""
        trained = train(generate(tmp_path, make, 30), Options("self_attention", steps=1))
        assert [predictor.rows for predictor in trained.model.predictors] == [rows]

    def test_neighbours_in_a_batch_do_not_matter(self, tmp_path):
        """Padding is masked in training: a batch has the figures of one row at a time."""
        path = generate(tmp_path, which_first, 60)
        trained = train(path, Options("multi_head", steps=60))
        right = []
        for row in read_data(path, with_memory=False).rows:
            tokens = torch.tensor(trained.model.text.tokenizer.encode(" ".join(row.sequence)).ids)
            output = trained.model.block(*trained.model.text.front(tokens[None])).output
            right.append(trained.model.head(output.mean(1))[0].argmax(-1).item())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            held_out = torch.randperm(60)[:12].tolist()
        labels = [row["label"] for row in map(json.loads, path.read_text().splitlines())]
        found = sum(["cat", "dog"][right[index]] == labels[index] for index in held_out) / 12
        assert found == pytest.approx(trained.training.figures["label.accuracy"])

    def test_ends_early_with_the_best_weights(self, tmp_path):
        """With random labels, training ends early and keeps the best weights."""
        rng = random.Random(0)
        rows = [{"text": " ".join(rng.choices(FILLERS, k=5)), "label": rng.choice("ab")} for _ in range(60)]
        path = write(tmp_path, rows)
        patient = train(path, Options("self_attention", steps=1_000, patience=3))
        assert patient.training.steps == patient.training.figures["best_step"] + 150 < 1_000
        at_best = train(path, Options("self_attention", steps=1_000, patience=4))
        assert all(map(torch.equal, weights(patient), weights(at_best)))

    def test_seed_decides(self, tmp_path):
        path = generate(tmp_path, review, 40)
        first, again, other = (train(path, Options("multi_head", steps=3), seed=seed) for seed in (0, 0, 1))
        assert same(first, again)
        assert not same(first, other)

    def test_unknown_words_mean_something(self, tmp_path):
        """Unknown words are allowed, and read as the unknown token."""
        text = train(generate(tmp_path, review, 40), Options("self_attention", steps=3)).model.text
        assert text.allow_unknown
        assert text.tokenizer.encode("Zebra great!").ids[0] == 0 != text.tokenizer.encode("Zebra great!").ids[1]

    def test_the_limit_of_length_changes_no_trained_number(self, tmp_path):
        """Positions behind the longest row are zeros, so that a limit above it gives the same model."""
        path = write(tmp_path, [{"text": "the cat sat", "label": "a"}, {"text": "a dog", "label": "b"}] * 15)
        least, more = (train(path, Options("multi_head", steps=3, max_tokens=length)) for length in (3, 40))
        positions = [trained.model.text.front.positions for trained in (least, more)]
        assert [trained.model.text.max_tokens for trained in (least, more)] == [3, 40]
        assert torch.equal(positions[0], positions[1][:3])
        assert not positions[1][3:].any()
        assert torch.equal(least.model.block.M_Q, more.model.block.M_Q)

    def test_a_row_longer_than_the_default_is_the_limit(self, tmp_path):
        path = write(tmp_path, [{"text": "word " * 600, "label": label} for label in "ab" * 15])
        assert own_data(path, "mine", Options("self_attention")).max_tokens == 600

    def test_vectors_out_of_all_proportion(self, tmp_path):
        rows = [{"vectors": [[3e38, 3e38], [-3e38, 3e38]], "label": label} for label in "ab" * 15]
        with pytest.raises(ValueError, match="the held-out loss is nan; bring vectors to about the length 1"):
            train(write(tmp_path, rows), Options("self_attention", steps=2))


class TestWords:
    def test_punctuation_after_a_word_is_ignored(self):
        """Punctuation after a word is ignored; a mark between spaces is a word."""
        assert split_words("Well, it WORKS!  (U.S. , 3.5)") == ("well", "it", "works", "(u.s", ",", "3.5)")

    @pytest.mark.parametrize("text", ["It works.", "a , b", "\u00a0one\u2003two\x1cthree", "İstanbul's", "[UNK] here"])
    def test_tokenizer_splits_alike(self, text):
        """The tokenizer splits as the reader of the file, so that labels align with tokens."""
        tokenizer = make_tokenizer(split_words(text))
        assert tuple(tokenizer.encode(text).tokens) == split_words(text)
        assert tuple(type(tokenizer).from_str(tokenizer.to_str()).encode(text).tokens) == split_words(text)


KILLED = """
import os, sys
from pathlib import Path
from attention_export.own_data import Options, own_data

def wait_to_be_killed(*_):
    print("ready", flush=True)
    sys.stdin.read()

def on_progress(progress):
    if progress.step == {at}:
        {then}

path, checkpoint = map(Path, sys.argv[1:])
task = own_data(path, "mine", Options("multi_head", steps=160), checkpoint)
task.train(0, task.steps, on_progress)
"""


class TestCheckpoint:
    @pytest.mark.parametrize(
        ("then", "partial"),
        [
            pytest.param("wait_to_be_killed()", False, id="in a step", marks=pytest.mark.long),
            pytest.param("os.fsync = wait_to_be_killed", True, id="while the checkpoint is written"),
        ],
    )
    def test_a_killed_run_resumes_exactly(self, tmp_path, then, partial):
        """A resumed run has the same bits as an uninterrupted one, and does not repeat steps."""
        path, checkpoint = generate(tmp_path, which_first, 200), tmp_path / "checkpoint"
        command = [sys.executable, "-c", KILLED.format(at=KILLED_AT, then=then), path, checkpoint]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            process.kill()
        assert {file.name for file in checkpoint.iterdir()} == {
            "checkpoint.pt",
            *([".checkpoint.pt.partial"] if partial else []),
        }
        seen = []
        options = Options("multi_head", steps=160)
        resumed = train(path, options, checkpoint=checkpoint, on_progress=lambda progress: seen.append(progress.step))
        assert seen == list(range(101, 161))
        assert same(resumed, train(path, options))

    def test_a_finished_run_is_not_run_again(self, tmp_path):
        path, options = generate(tmp_path, review, 40), Options("self_attention", steps=60)
        first = train(path, options, checkpoint=tmp_path / "c")
        seen = []
        assert same(first, train(path, options, checkpoint=tmp_path / "c", on_progress=seen.append))
        assert not seen

    def test_of_another_run(self, tmp_path):
        """A checkpoint of another run is an error that names the differences."""
        path, checkpoint = generate(tmp_path, review, 40), tmp_path / "c"
        train(path, Options("self_attention", steps=2), checkpoint=checkpoint)
        with pytest.raises(
            CheckpointError, match=r"is of another run: heads was 0 and is 2; seed was 0 and is 1\. Give"
        ):
            train(path, Options("self_attention", heads=2, steps=2), seed=1, checkpoint=checkpoint)
        generate(tmp_path, review, 40, seed=1)
        with pytest.raises(CheckpointError, match=r"is of another run: the data differs\. Give"):
            train(path, Options("self_attention", steps=2), checkpoint=checkpoint)

    @pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None])
    def test_damaged(self, tmp_path, damage):
        """A damaged checkpoint, or one with pickled code, is an error; the code does not run."""
        (tmp_path / "c").mkdir()
        file = tmp_path / "c" / "checkpoint.pt"
        if damage is None:
            torch.save({"run": {}, "state": Path("x")}, file)
        else:
            file.write_bytes(damage)
        with pytest.raises(CheckpointError, match=r"checkpoint\.pt is no checkpoint of this program, or is damaged"):
            train(generate(tmp_path, review, 40), Options("self_attention", steps=2), checkpoint=tmp_path / "c")


class TestCommand:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ([], "give a task, one of retrieval, roles, numbers, or --data FILE, not both"),
            (["roles", "--data", "rows.jsonl"], "give a task, one of retrieval, roles, numbers, or --data FILE, not"),
            (["--data", "rows.jsonl"], "--data needs --block, one of dot_product, self_attention"),
            (["roles", "--heads", "2", "--checkpoint", "c"], "--checkpoint, --heads: only with --data"),
            (["--data", "rows.jsonl", "--block", "multi_head", "--name", "x"], "rows.jsonl, line 1: text is missing"),
        ],
    )
    def test_what_does_not_go_together(self, tmp_path, monkeypatch, arguments, said):
        monkeypatch.chdir(tmp_path)
        write(tmp_path, ["{}"])
        result = CliRunner().invoke(app, ["train", *arguments])
        assert result.exit_code == 1
        assert said in result.output

    @pytest.mark.usefixtures("few_graphs")
    def test_from_file_to_service(self, tmp_path):
        """A model trained by the command predicts the learned labels over the wire."""
        data, figure, models = generate(tmp_path, lookup, 500), tmp_path / "figures" / "figure.png", tmp_path / "models"
        arguments = ["--data", data, "--block", "cross_attention", "--name", "places", "--steps", 800]
        arguments += ["--figure", figure, "--models", models]
        result = CliRunner().invoke(app, ["train", *map(str, arguments)])
        assert result.exit_code == 0, result.output
        assert "label.majority" in result.output
        assert "texts of at most 512 tokens will be served; --max-tokens sets the number" in result.output
        assert figure.read_bytes().startswith(b"\x89PNG")
        memory = {"ann": "lima", "cid": "oslo", "eve": "bonn"}
        with start_server(models) as server, AttentionClient(server.grpc) as client:
            for name, place in memory.items():
                answer = client.attend(
                    "places",
                    text=f"Where was {name}?",  # "was" is new to it
                    memory_text=" ".join("=".join(pair) for pair in memory.items()),
                    outputs=["weights", "predictions"],
                )
                assert [each.label for each in answer.predictions] == [place]
                assert answer.weights.shape == (4, 3, 3)
            longest = client.attend("places", text="where " * 512, memory_text="ann=lima " * 512, outputs=["weights"])
            assert longest.weights.shape == (4, 512, 512)
            for field in ("text", "memory_text"):
                with pytest.raises(InvalidRequest, match=rf"{field}: has 513 tokens; this model reads at most 512"):
                    client.attend("places", **{"text": "where", "memory_text": "x", field: "where " * 513})
