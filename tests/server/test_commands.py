"""The commands without dependencies: `--help` and `--version` work, all else says in one line what to install."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from attention_server.machine import usable_cores, usable_memory
from attention_server.settings import larger_eighth, read_settings

# The modules that an import finds where only the base install is there, or where one module of an extra is missing.
HIDING = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

HIDDEN = set(sys.argv.pop(1).split(","))
sys.meta_path.insert(0, Hidden())
module, function = sys.argv.pop(1).split(":")
sys.argv[0] = module
getattr(__import__(module, fromlist=[function]), function)()
"""
EXTRAS = "pydantic,pydantic_settings,structlog,uvloop,uvicorn,starlette,onnxruntime,orjson,cffi,typer,rich,torch,onnx"
COMMANDS = {
    "attention-server": ("attention_server.command:main", "server"),
    "attention-token": ("attention_server.command:token", "server"),
    "attention-export": ("attention_export.command:main", "export"),
}


def run(command, hidden, *arguments):
    """Run a command in a process that cannot import some modules."""
    entry, _ = COMMANDS[command]
    return subprocess.run(
        [sys.executable, "-c", HIDING, hidden, entry, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_the_base_install(command):
    """Without any extra a command names a missing module and the extra, in one line, and fails."""
    done = run(command, EXTRAS)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{command} needs ")
    assert line.endswith(f"pip install 'attention-service[{COMMANDS[command][1]}]'")


@pytest.mark.parametrize("missing", ["onnxruntime", "uvicorn"])
def test_one_missing_module(missing):
    """A server without one of its modules names it; its help has every setting all the same."""
    done = run("attention-server", missing)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"attention-server needs {missing}: pip install 'attention-service[server]'\n"
    shown = run("attention-server", missing, "--help")
    assert shown.returncode == 0
    assert "--grpc-port" in shown.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_version_without_extras(command):
    """`--help` tells the purpose and the needs of the command; `--version` tells the version."""
    shown = run(command, EXTRAS, "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith(f"usage: {command}")
    assert "pip install" in shown.stdout
    told = run(command, EXTRAS, "--version")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.split()[0] == command


def examined(*arguments):
    """Run the doctor as a user runs it: exit status and report."""
    command = [Path(sys.executable).with_name("attention-server"), "doctor", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def test_the_doctor(tmp_path):
    """The doctor reports cores and memory, and what a server with these flags does; a start here has no obstacle."""
    status, report = examined("--rest-port", "0", "--grpc-port", "0", "--slots", "3", "--models", str(tmp_path))
    assert (status, report["problems"]) == (0, [])
    machine = report["machine"]
    assert (machine["cores"], machine["memory_mib"]) == (usable_cores(), usable_memory() // 2**20)
    assert machine["libnghttp2"].split(".") >= ["1", "41"]
    assert report["extras"]["server"] == []
    told = report["server"]
    settings = read_settings(["--slots", "3"])
    assert (told["slots"], told["grpc_server"]) == (3, "native, on libnghttp2")
    assert told["memory_budget_mib"] == settings.memory_budget_mib
    assert told["models"] == f"{tmp_path}, 0 models"


def test_the_doctor_names_obstacles(tmp_path):
    """A port that is taken, a folder that is not there and a refused flag are each a problem, and status 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, report = examined("--grpc-port", port, "--rest-port", "0", "--models", str(tmp_path / "none"))
    assert status == 1
    assert report["problems"] == [
        f"--models: there is no folder {tmp_path}/none",
        f"--grpc-port: 127.0.0.1:{port}: Address already in use",
    ]
    status, report = examined("--slots", "x")
    assert (status, len(report["problems"])) == (1, 1)
    assert report["problems"][0].startswith("--slots (ATTENTION_SLOTS): ")


def test_the_doctor_without_extras():
    """Without any extra the doctor still reports the machine, and names the extra of the server."""
    done = run("attention-server", EXTRAS, "doctor")
    assert (done.returncode, done.stderr) == (1, "")
    assert f"  cores               {usable_cores()}\n" in done.stdout
    assert "pip install 'attention-service[server]'" in done.stdout
    assert run("attention-server", EXTRAS, "doctor", "--help").stdout.startswith("usage: attention-server doctor")


def test_the_help_shows_defaults_as_values():
    """A default that depends on the machine is shown as the number that it is here."""
    shown = " ".join(run("attention-server", "onnxruntime", "--help").stdout.split())
    assert "default factory" not in shown
    assert f"at most 512 (default: {larger_eighth()})" in shown


def test_refused_settings_are_one_line():
    """Each refused setting is named by flag and variable, in one line."""
    command = [Path(sys.executable).with_name("attention-server"), "--slots", "x", "--grace", "-1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert "--slots (ATTENTION_SLOTS): " in line
    assert "--grace (ATTENTION_GRACE): " in line
