"""The contract only grows: the verdict of `make check` on a change to it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import ROOT

BIN = Path(sys.executable).parent
HEAD = "message AttendResponse {\n"
FIELD = f"{HEAD}  // The name of the model.\n  string model = 1;\n"
CHANGES = {
    "a field goes": (FIELD, HEAD, "model"),
    "a field has another number": (FIELD, FIELD.replace("= 1", "= 9"), "model"),
    "a field has another type": (FIELD, FIELD.replace("string", "bytes"), "model"),
    "a field has another name": (FIELD, FIELD.replace("model =", "models ="), "model"),
    "a procedure goes": ("  rpc GetModel(GetModelRequest) returns (Model);\n", "", "GetModel"),
    "a number of an enumeration goes": ("    POOL_LAST = 3;\n", "", '"3"'),
    "a field without a comment": (
        "  repeated Result results = 3;\n",
        "  repeated Result results = 3;\n  bool x = 900;\n",
        "x",
    ),
}


def lint(folder):
    command = [folder / "lint.sh", BIN]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


def changed(folder, old, new):
    """Copy the contract, with one change."""
    for name in ("lint.sh", "buf.yaml", "attention.binpb"):
        shutil.copy(ROOT / "proto" / name, folder)
    contract = folder / "attention/v1/attention.proto"
    contract.parent.mkdir(parents=True)
    text = (ROOT / "proto/attention/v1/attention.proto").read_text()
    assert old in text
    contract.write_text(text.replace(old, new, 1))
    return folder


@pytest.mark.parametrize(("old", "new", "named"), CHANGES.values(), ids=CHANGES)
def test_what_breaks_is_refused(tmp_path, old, new, named):
    """A change that breaks callers, or has no comment, is refused by its name."""
    done = lint(changed(tmp_path, old, new))
    assert done.returncode != 0
    assert named in done.stdout + done.stderr


def test_what_grows_is_taken(tmp_path):
    """A new field passes."""
    done = lint(changed(tmp_path, FIELD, FIELD + "  // Another one.\n  bool another = 15;\n"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "only grew" in done.stdout


def test_a_field_of_the_manifest_may_go_when_it_is_reserved(tmp_path):
    """A field may go where its name and number are reserved, so that no new one takes its place."""
    source = "  // The source of imported weights.\n  string source = 11;\n"
    done = lint(changed(tmp_path, source, '  reserved 11;\n  reserved "source";\n'))
    assert done.returncode == 0, done.stdout + done.stderr
