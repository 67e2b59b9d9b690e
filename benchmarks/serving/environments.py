"""Virtual environments of pinned packages, made by uv: one for each peer, one for the load generators.

An environment is made once, and again when its pins change. uv takes seconds where pip takes more than ten minutes: it
reads the metadata of a package without its files, and unpacks files into environments by links to its cache.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOME = ROOT / "build/bench/environments"  # of all benchmarks
TOKENIZERS = "tokenizers==0.23.3"
PINNED = {
    "mosec": ("mosec==0.9.8", "msgpack==1.2.4", "numpy==2.4.6", "onnxruntime==1.32.0", TOKENIZERS),
    "Triton": ("nvidia-pytriton==0.7.0", "tritonclient==2.73.0", "numpy==1.26.4", "onnxruntime==1.32.0", TOKENIZERS),
    "MLServer": ("mlserver==1.7.1", "numpy==2.4.6", "onnxruntime==1.32.0", TOKENIZERS),
    "FastAPI": ("fastapi==0.165.0", "uvicorn==0.54.0", "httptools==0.9.0", "uvloop==0.23.0"),
    "load": ("tritonclient[grpc]==2.73.0", "msgpack==1.2.4", "numpy==2.4.6", "uvloop==0.23.0"),
}
OWN = {"server": ROOT / ".venv", "development": ROOT / ".venv-dev"}
NAMED = {"attention-service", "grpcio", "numpy", "onnxruntime", "protobuf", "torch"}  # reported besides pinned packages
UV = OWN["development"] / "bin/uv"
SECONDS_TO_INSTALL = 600

Environments = dict[str, Future[Path]]  # an environment's Python by the name of the peer


class CannotInstall(RuntimeError):
    """uv failed; the message is its last line of output."""


def begin(names: Iterable[str], folder: Path, say: Callable[[str], object]) -> Environments:
    """Make environments in threads, all at once, unless these exist with the same pins.

    Args:
        names: keys of `PINNED`.
        folder: the folder of environments.
        say: receives a line when an environment is there, or cannot be made.

    Returns:
        The environment's Python by name. Its result raises `CannotInstall` where a package is not available or cannot
        be installed on this machine.
    """
    pool = ThreadPoolExecutor(len(PINNED), "install")
    made = {name: pool.submit(_install, name, folder, say) for name in names}
    pool.shutdown(wait=False)
    return made


def _install(name: str, folder: Path, say: Callable[[str], object]) -> Path:
    home = folder / name.lower()
    python, done, pins = home / "bin/python", home / "pinned", "\n".join(PINNED[name])
    if done.is_file() and done.read_text() == pins:
        return python
    begun = time.monotonic()
    say(f"{name}: installing")
    try:
        _run([UV, "venv", "--quiet", "--clear", "--python", sys.executable, home])
        _run([UV, "pip", "install", "--quiet", "--python", python, *PINNED[name]])
    except CannotInstall as error:
        say(f"{name}: cannot be installed, after {time.monotonic() - begun:.0f} s: {error}")
        raise
    done.write_text(pins)
    say(f"{name}: installed in {time.monotonic() - begun:.0f} s")
    return python


def versions(python: Path) -> dict[str, str]:
    """Return an environment's versions of the pinned packages and those in `NAMED`."""
    listed = subprocess.run(  # noqa: S603 # our own
        [UV, "pip", "list", "--quiet", "--python", python, "--format", "json"],
        check=True,
        capture_output=True,
        text=True,
    )
    names = NAMED | {pin.partition("==")[0].partition("[")[0] for pins in PINNED.values() for pin in pins}
    return {each["name"]: each["version"] for each in json.loads(listed.stdout) if each["name"] in names}


def _run(command: list[str | Path]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS_TO_INSTALL)  # noqa: S603 # our own
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip().splitlines() or ["uv failed"]
        raise CannotInstall(" ".join(said[-1].split())) from error
    except (subprocess.TimeoutExpired, OSError) as error:
        raise CannotInstall(str(error)) from error
