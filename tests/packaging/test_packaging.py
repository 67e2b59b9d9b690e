"""The packages: content of wheel and sdist, imports of the base install, each extra in an environment of its own."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from serving import ROOT, clean_env

BASE = ("google.protobuf", "google.rpc", "grpc", "grpc_status.rpc_status", "numpy")  # dependencies of the base install
REMEDY = "pip install 'attention-service[{}]'"
COMMANDS = {"attention-client": "cli", "attention-export": "export", "attention-server": "server"}


def built(folder: Path, *targets: str, source: Path = ROOT) -> list[Path]:
    """Build the source into a folder; return the files, the sdist before the wheel."""
    command = [sys.executable, "-m", "hatchling", "build", "--directory", folder]
    for target in targets:
        command += ["--target", target]
    subprocess.run(command, cwd=source, check=True, capture_output=True, text=True)
    return sorted(folder.iterdir(), key=lambda each: each.suffix)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Build an sdist of the checkout, and a wheel of the unpacked sdist alone; return both."""
    (sdist,) = built(tmp_path_factory.mktemp("sdist"), "sdist")
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    (source,) = unpacked.iterdir()
    (wheel,) = built(tmp_path_factory.mktemp("wheel"), "wheel", source=source)
    return sdist, wheel


def test_the_sdist_builds_the_wheel(packages, tmp_path):
    """The wheel of the sdist has the files of the checkout's, with licence, types, models and the page's licences."""
    _, wheel = packages
    (direct,) = built(tmp_path, "wheel")
    names = zipfile.ZipFile(wheel).namelist()
    assert sorted(names) == sorted(zipfile.ZipFile(direct).namelist())
    for name in (
        "attention_client/py.typed",
        "attention_proto/py.typed",
        "attention_server/models/multi-head/1/manifest.json",
        "attention_server/rest/page/LICENSES.txt",
        "attention_service-0.1.0.dist-info/licenses/LICENSE",
    ):
        assert name in names
    packed = {name.split("/")[0] for name in names}
    assert packed == {
        *("attention_batch", "attention_client", "attention_export", "attention_proto", "attention_server"),
        "attention_service-0.1.0.dist-info",
    }


def test_the_base_install_imports_nothing_heavy():
    """`import attention_client` loads itself, the contract and its dependencies; OpenTelemetry where installed."""
    code = (
        f"import sys, {', '.join(BASE)}; before = set(sys.modules); import attention_client; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) <= {"attention_client", "attention_proto", "google", "grpc", "numpy", "opentelemetry"}


def interpreters() -> Iterator[Path]:
    """Yield an interpreter of each supported version that this machine has, on the path or of pyenv."""
    for minor in (11, 12, 13, 14):
        found = [shutil.which(f"python3.{minor}"), *Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python3")]
        for each in filter(None, found):
            if not subprocess.run([each, "-c", "import ensurepip"], capture_output=True, check=False).returncode:
                yield Path(each)
                break


@contextmanager
def environment(python: Path, wheel: Path, extra: str, folder: Path) -> Iterator[Path]:
    """Install the wheel with an extra into an environment of its own; yield the folder of its commands."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    name = f"{wheel}[{extra}]" if extra else wheel
    subprocess.run([folder / "bin/pip", "install", "--quiet", name], check=True, env=clean_env())
    try:
        yield folder / "bin"
    finally:
        shutil.rmtree(folder)


def run(command: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an installed command, away from the checkout."""
    env = {name: value for name, value in clean_env().items() if name != "PYTHONPATH"}
    return subprocess.run(
        [command, *arguments], capture_output=True, text=True, check=False, cwd=command.parent, env=env
    )


def check_commands(commands: Path, working: set[str]) -> None:
    """Check of each command that it works, or that one line names the extra that it needs."""
    for name, extra in COMMANDS.items():
        assert run(commands / name, "--version").stdout.startswith(f"{name} ")
        shown = run(commands / name, "--help")
        assert shown.returncode == 0, shown.stderr
        started = run(commands / name, "nonsense")
        if name in working:
            assert started.returncode == 2, started.stderr
            continue
        (line,) = started.stderr.splitlines()
        assert started.returncode == 1
        assert line.endswith(REMEDY.format(extra)), line
        assert REMEDY.format(extra) in shown.stdout


def check_extra(extra: str, commands: Path) -> None:
    """Check that the purpose of an extra is met."""
    python = commands / "python"
    modules = {
        "plot": "attention_client.display.plot",
        "batch": "attention_batch.run",
        "ray": "attention_batch.engines.ray",
    }
    if extra in modules:
        imported = run(python, "-c", f"import {modules[extra]}")
        assert imported.returncode == 0, imported.stderr
    if extra in {"cli", "batch", "ray", "export"}:
        unreachable = run(commands / "attention-client", "models", "--target", "127.0.0.1:1")
        assert unreachable.stderr.startswith("error: cannot reach 127.0.0.1:1: ")
    if extra == "cli":
        told = run(commands / "attention-client", "score", "a.jsonl", "b.jsonl", "--model", "dot-product")
        assert told.stderr.strip().endswith(REMEDY.format("batch")), told.stderr
    if extra in {"server", "ray"}:
        examined = run(commands / "attention-server", "doctor", "--json", "--rest-port", "0", "--grpc-port", "0")
        assert examined.returncode == 0, examined.stdout
        assert json.loads(examined.stdout)["extras"]["server"] == []
        serve_and_ask(commands)
    if extra == "export":
        made = run(commands / "attention-export", "block", "dot_product", "--name", "own", "--models", "own", "--json")
        assert made.returncode == 0, made.stderr


def serve_and_ask(commands: Path) -> None:
    """Start the installed server on the models of the wheel, and ask it with the installed client."""
    code = (
        "import sys; from attention_client import AttentionClient; client = AttentionClient(sys.argv[1]); "
        "print(client.attend('multi-head', text='I gave my cat Tater a toy').predictions[1].label)"
    )
    command = [commands / "attention-server", "--rest-port", "0", "--grpc-port", "0", "--log-level", "warning"]
    env = {name: value for name, value in clean_env().items() if name != "PYTHONPATH"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=commands, env=env) as server:
        try:
            ready = server.stdout.readline()
            assert ready.startswith("ready "), ready
            asked = run(commands / "python", "-c", code, ready.rpartition("grpc=")[2].strip())
            assert asked.stdout == "Tater\n", asked.stderr
        finally:
            server.terminate()


WORKING = {
    "": set(),
    "cli": {"attention-client"},
    "plot": set(),
    "batch": {"attention-client"},
    "server": {"attention-server"},
    "ray": {"attention-client", "attention-server"},
    "export": {"attention-client", "attention-export"},
}


@pytest.mark.long
@pytest.mark.parametrize("extra", WORKING)
def test_each_extra_in_an_environment_of_its_own(packages, tmp_path, extra):
    """With one extra alone its commands start and work; each further command names its own extra in one line."""
    pythons = list(interpreters())
    assert pythons, "there is no interpreter"
    for python in pythons[:1] if extra in {"ray", "export"} else pythons:  # these two are gigabytes
        with environment(python, packages[1], extra, tmp_path / "environment") as commands:
            check_commands(commands, WORKING[extra])
            check_extra(extra, commands)
            print(f"{os.path.realpath(python)}: [{extra}] works")
