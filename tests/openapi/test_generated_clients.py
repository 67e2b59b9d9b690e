"""Clients that generators make of the OpenAPI document compile strictly and call the service."""

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.serving import ROOT

HERE = Path(__file__).parent
CLIENTS = ROOT / ".venv-clients/bin"
NODE_MODULES = HERE / "node_modules"
DOCUMENT = ROOT / "server/attention_server/rest/openapi.json"
# The generator's own runtime, the same for every document: its __exit__ passes on `*args: object`.
MYPY = "[mypy]\nstrict = true\n[mypy-generated.client]\nignore_errors = true\n"


def run(*command, cwd, path=os.environ["PATH"]):
    """Run a program; return its output. A failure shows all of it."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PATH": path}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def python_client(tmp_path_factory):
    """A folder with the package that openapi-python-client makes of the document, and a program that uses it."""
    folder = tmp_path_factory.mktemp("python")
    command = [CLIENTS / "openapi-python-client", "generate", "--path", DOCUMENT, "--config", HERE / "generator.yml"]
    command += ["--meta", "none", "--output-path", "generated", "--fail-on-warning"]
    run(*command, cwd=folder, path=f"{CLIENTS}:{os.environ['PATH']}")  # it formats by its own ruff
    shutil.copy(HERE / "call.py", folder)
    return folder


@pytest.fixture(scope="module")
def typescript_client(tmp_path_factory):
    """A folder with the types that openapi-typescript makes of the document, and a program that uses the types."""
    folder = tmp_path_factory.mktemp("typescript")
    for name in ("call.ts", "tsconfig.json", "package.json"):
        shutil.copy(HERE / name, folder)
    (folder / "node_modules").symlink_to(NODE_MODULES)
    run(node(), NODE_MODULES / "openapi-typescript/bin/cli.js", DOCUMENT, "-o", "generated.ts", cwd=folder)
    return folder


def node():
    """Return the program that runs JavaScript."""
    found = shutil.which("node", path=str(Path(sys.executable).parent))
    assert found
    return found


def check(read):
    """Check the answer that a generated client read: three rows of the dot product, each over itself and those before
    it."""
    query = np.array([[1, 0], [0, 1], [1, 1]])
    scores = np.where(np.tri(3, dtype=bool), query @ query.T, -np.inf)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    assert read["block"] == "dot_product"
    assert read["shape"] == [1, 3, 3]
    np.testing.assert_allclose(np.reshape(read["weights"], (3, 3)), weights, atol=1e-6)
    entropy = [-sum(w * np.log(w) for w in row if w) for row in weights]
    np.testing.assert_allclose(read["entropy"], entropy, atol=1e-6)
    assert read["pair"] == read["weights"]
    assert read["embeddings"] == [2, 8]
    assert read["top"][0] == read["first"]
    assert [label for _, label, _ in read["top"]] == ["abc"[id_] for id_, _, _ in read["top"]]
    assert read["top"][0][2] >= read["top"][1][2]
    assert np.reshape(read["indices"], (3, 2))[2].tolist() == [2, 0]
    whole = np.exp(query @ query.T) / np.exp(query @ query.T).sum(-1, keepdims=True)
    output = np.frombuffer(base64.b64decode(read["output"]), "<f4").reshape(3, 2)
    np.testing.assert_allclose(output, whole @ query, atol=1e-6)
    assert read["tokens"] == ["ein", "und"]
    assert read["field"] == "key"
    param, message = read["without_pooling"]
    assert param == "model"
    assert "`--pool mean`" in message


def test_python(python_client, server):
    """openapi-python-client leaves nothing out; its client is typed strictly, and reads weights without a cast."""
    (python_client / "mypy.ini").write_text(MYPY)
    mypy = ("mypy", "--config-file", "mypy.ini", "--python-executable", CLIENTS / "python")
    run(sys.executable, "-m", *mypy, "call.py", "generated", cwd=python_client)
    assert "cast" not in (python_client / "call.py").read_text()
    check(json.loads(run(CLIENTS / "python", "call.py", server.url, cwd=python_client)))


def test_typescript(typescript_client, server):
    """The types of openapi-typescript compile strictly; a call of `:attend` and its answer are typed without a cast."""
    run(node(), NODE_MODULES / "typescript/bin/tsc", "--project", ".", cwd=typescript_client)
    source = (typescript_client / "call.ts").read_text()
    assert " as " not in source
    assert "any" not in source.split()
    check(json.loads(run(node(), "call.js", server.url, cwd=typescript_client)))


def test_a_wrong_call_does_not_compile(python_client, typescript_client):
    """The types refuse an output that is a bare string, and an unknown stage."""
    (typescript_client / "wrong.ts").write_text(
        'import type { components } from "./generated.js";\n'
        'export const asked: components["schemas"]["OutputSpec"] = { name: "wieghts" };\n'
    )
    command = [node(), NODE_MODULES / "typescript/bin/tsc", "--project", ".", "--noEmit"]
    done = subprocess.run(list(map(str, command)), cwd=typescript_client, capture_output=True, text=True, check=False)
    (typescript_client / "wrong.ts").unlink()
    assert done.returncode != 0
    assert "wieghts" in done.stdout
