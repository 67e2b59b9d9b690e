"""The example in docs/scoring.md runs as it is written."""

import json
import os
import re
import subprocess

from serving import ROOT, start_server

DOCUMENT = (ROOT / "docs/scoring.md").read_text()


def test_the_example_runs_as_written(tmp_path):
    """The embedded model scores two sentences, and the third is a dead letter."""
    commands = re.search(r"^```\n(cat > .*?)^```$", DOCUMENT, flags=re.DOTALL | re.MULTILINE)
    assert commands
    with start_server(ROOT / "models") as server:
        script = commands[1].replace(".venv/bin", f"{ROOT}/.venv/bin")
        env = {"ATTENTION_TARGET": server.grpc, "PATH": "/usr/bin:/bin"}
        env |= {name: value for name, value in os.environ.items() if name == "PYTHONPATH"}
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path, env=env)
    first, second, letter = map(json.loads, done.stdout.splitlines())
    assert [each["label"] for each in first["predictions"]] == ["I", "Tater", "toy"]
    assert [each["label"] for each in second["predictions"]] == ["Leo", "Mia", "letter"]
    assert len(first["entropy"]) == 3
    assert (letter["id"], letter["field"], "'xyzzy' is not in" in letter["reason"]) == ("c", "text", True)
