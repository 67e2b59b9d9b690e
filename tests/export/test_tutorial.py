"""The tutorial runs as it is written: its commands work, in order, and print the lines that it shows."""

import contextlib
import json
import re
import shlex
import subprocess

import pytest
from attention_export.cli import app
from serving import ROOT, clean_env, start_server
from typer.testing import CliRunner

BLOCKS = re.findall(r"^```\n(.*?)^```$", (ROOT / "docs/tutorial.md").read_text(), re.DOTALL | re.MULTILINE)


class Reader:
    """A reader of the tutorial, with terminals in a folder of their own.

    Args:
        folder: the folder, in place of the checkout.
        trains_apart: whether training is a process of its own, as for a reader; it then takes twice the time.
    """

    def __init__(self, folder, trains_apart):
        self._folder = folder
        self._trains_apart = trains_apart
        self._servers = contextlib.ExitStack()
        self._server = None
        self.printed = ""

    def follow(self, block):
        """Do as a block says, or find its lines in the output of the commands before."""
        if block == "make run\n":
            self._serve(ROOT / "models")
        elif "attention-server --models" in block:
            self._serve(self._folder / block.split()[-1])
        elif "attention-export" in block and not self._trains_apart:
            done = CliRunner().invoke(app, shlex.split(block)[1:])
            assert done.exit_code == 0, done.output
            self.printed = done.output
        elif re.search(r"\.venv|^cat ", block):
            self._type(block)
        else:
            squeezed = " ".join(self.printed.split())
            for line in block.splitlines():
                assert " ".join(line.split()) in squeezed, f"{line!r} is not in {self.printed}"

    def close(self):
        """Stop the server."""
        self._servers.close()

    def _serve(self, models):
        self._servers.close()
        self._server = self._servers.enter_context(start_server(models))

    def _type(self, commands):
        script = re.sub(r"\.venv(-dev)?/", lambda found: f"{ROOT}/{found[0]}", commands)
        env = clean_env() | {"ATTENTION_TARGET": self._server.grpc}
        command = ["bash", "-e", "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self._folder, env=env)
        assert done.returncode == 0, done.stderr
        self.printed = done.stdout + done.stderr


def read(folder, trains_apart):
    """Follow every block in a folder; return the answers that were scored."""
    reader = Reader(folder, trains_apart)
    try:
        for block in BLOCKS:
            reader.follow(block)
    finally:
        reader.close()
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def check(folder, answers):
    """Check the answers of the model that was trained, and the files that were drawn."""
    assert [each["predictions"][0]["label"] for each in answers] == ["fox", "cow"]
    assert all(each["entropy"][0] < 0.5 for each in answers)
    assert "early" in (folder / "animals.html").read_text()
    assert (folder / "served-models/animals/1/training.png").is_file()


@pytest.mark.usefixtures("few_lengths")
def test_the_tutorial(tmp_path, monkeypatch):
    """A reader of the tutorial gets a trained model, answers, scores and pictures. Training runs in this process."""
    monkeypatch.chdir(tmp_path)
    check(tmp_path, read(tmp_path, trains_apart=False))


@pytest.mark.long
def test_the_tutorial_to_the_letter(tmp_path):
    """The same with a process for every command, and the whole verification of the export."""
    check(tmp_path, read(tmp_path, trains_apart=True))
