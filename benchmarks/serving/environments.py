"""Virtual environments of pinned packages, made by pip: one for each peer, one for the load generators."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
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
SECONDS_TO_INSTALL = 600


class CannotInstall(RuntimeError):
    """pip failed; the message is its last line of output."""


def install(name: str, folder: Path) -> Path:
    """Make an environment, unless it exists with the same pins.

    Args:
        name: a key of `PINNED`.
        folder: the folder of environments.

    Returns:
        The environment's Python.

    Raises:
        CannotInstall: a package is not available or cannot be installed on this machine.
    """
    home = folder / name.lower()
    python, done, pins = home / "bin/python", home / "pinned", "\n".join(PINNED[name])
    if done.is_file() and done.read_text() == pins:
        return python
    for command in (
        [sys.executable, "-m", "venv", "--clear", home],
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PINNED[name]],
    ):
        _run(command)
    done.write_text(pins)
    return python


def versions(python: Path) -> dict[str, str]:
    """Return an environment's versions of the pinned packages and those in `NAMED`."""
    listed = subprocess.run(  # noqa: S603 # our own
        [python, "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"],
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
        said = (error.stderr or error.stdout).strip().splitlines() or ["pip failed"]
        raise CannotInstall(said[-1]) from error
    except subprocess.TimeoutExpired as error:
        raise CannotInstall(f"pip took more than {SECONDS_TO_INSTALL} s") from error
