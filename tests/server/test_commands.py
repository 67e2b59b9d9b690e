"""The commands without dependencies: `--help` and `--version` work, all else says in one line what to install."""

import subprocess
import sys

import pytest

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
