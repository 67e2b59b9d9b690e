"""A virtual environment for each peer and for the load, of pinned packages, made by pip alone."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PINNED = {
    "mosec": ("mosec==0.9.8", "msgpack==1.2.4", "numpy==2.4.6", "onnxruntime==1.32.0"),
    "Triton": ("nvidia-pytriton==0.7.0", "tritonclient==2.73.0", "numpy==1.26.4", "onnxruntime==1.32.0"),
    "MLServer": ("mlserver==1.7.1", "numpy==2.4.6", "onnxruntime==1.32.0"),
    "load": ("tritonclient[grpc]==2.73.0", "msgpack==1.2.4", "numpy==2.4.6", "uvloop==0.23.0"),
}
OWN = {"server": ROOT / ".venv", "development": ROOT / ".venv-dev"}
NAMED = {"attention-service", "grpcio", "numpy", "onnxruntime", "protobuf", "torch"}  # besides what is pinned
SECONDS_TO_INSTALL = 600


class CannotInstall(RuntimeError):
    """pip could not; the message is the last that it said."""


def install(name: str, folder: Path) -> Path:
    """Make an environment, unless it is there with the same pins.

    Args:
        name: whose, in `PINNED`.
        folder: where environments lie.

    Returns:
        Its Python.

    Raises:
        CannotInstall: a package is not to be had, or does not install here.
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
    """Return the versions of the packages that matter in an environment."""
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
