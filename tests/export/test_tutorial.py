"""The tutorial runs as it is written: its commands work, in order, and print the lines that it shows."""

import contextlib
import json
import re
import shlex
import subprocess

import pytest
from attention_client.cli import commands
from attention_export import cli
from serving import ROOT, clean_env, start_server
from typer.testing import CliRunner

BLOCKS = re.findall(r"^```\n(.*?)^```$", (ROOT / "docs/tutorial.md").read_text(), re.DOTALL | re.MULTILINE)


class Reader:
    """A reader of the tutorial, with terminals in a folder of their own.

    Args:
        folder: the folder, in place of the checkout.
        types: whether every command is a process of its own, as for a reader; else the commands of one line run in this
            process, which has imported them.
    """

    def __init__(self, folder, types):
        self._folder = folder
        self._types = types
        self._servers = contextlib.ExitStack()
        self._server = None
        self.printed = ""

    def follow(self, block):
        """Do as a block says, or find its lines in the output of the commands before."""
        if block == "make run\n":
            self._serve(ROOT / "models")
        elif "attention-server --models" in block:
            self._serve(self._folder / block.split()[-1])
        elif re.match(r"\.venv\S*/attention-", block) and not self._types:
            self.printed = "".join(map(self._call, block.splitlines()))
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

    def _call(self, line):
        program, *arguments = shlex.split(line)
        app = {"attention-client": commands.app, "attention-export": cli.app}[program.rpartition("/")[2]]
        env = {"ATTENTION_TARGET": self._server.grpc}
        done = CliRunner().invoke(app, arguments, env=env)
        assert done.exit_code == 0, done.output
        return done.output

    def _type(self, lines):
        script = re.sub(r"\.venv(-dev)?/", lambda found: f"{ROOT}/{found[0]}", lines)
        env = clean_env() | {"ATTENTION_TARGET": self._server.grpc}
        command = ["bash", "-e", "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self._folder, env=env)
        assert done.returncode == 0, done.stderr
        self.printed = done.stdout + done.stderr


def read(folder, types):
    """Follow every block in a folder; return the answers that were scored."""
    reader = Reader(folder, types)
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
    """A reader of the tutorial gets a trained model, answers, scores and pictures."""
    monkeypatch.chdir(tmp_path)
    check(tmp_path, read(tmp_path, types=False))


@pytest.mark.long
def test_the_tutorial_to_the_letter(tmp_path):
    """The same with a process for every command, and the whole verification of the export."""
    check(tmp_path, read(tmp_path, types=True))
