"""The GPU, its memory, and the versions that a report holds for."""

import subprocess
from pathlib import Path

import onnxruntime as ort

from benchmarks.serving.machine import describe

ROOT = Path(__file__).parents[2]
MIB = 2**20


def query(field: str) -> str:
    """Return a property of the first GPU as `nvidia-smi` tells it, without unit; empty where it tells none."""
    try:
        said = _output("nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return said.partition("\n")[0].strip()


def memory_bytes(field: str) -> int:
    """Return `memory.used` or `memory.total` of the first GPU; 0 where it is not told."""
    said = query(field)
    return int(float(said) * MIB) if said.replace(".", "", 1).isdigit() else 0


def versions() -> dict[str, str]:
    """Return the device, the versions and the commit as cells of a table."""
    memory = memory_bytes("memory.total")
    return {
        "device": query("name") or "not told by nvidia-smi",
        "device's memory": f"{memory / 2**30:.1f} GiB" if memory else "not told by nvidia-smi",
        "driver": query("driver_version") or "not told by nvidia-smi",
        "onnxruntime": f"{ort.__version__}, {_cuda() or 'built without CUDA'}",
        "commit": _commit(),
    } | describe()


def _cuda() -> str:
    version = getattr(ort, "cuda_version", "")
    return f"built for CUDA {version}" if version else ""


def _commit() -> str:
    try:
        return _output("git", "-C", str(ROOT), "describe", "--always", "--dirty").strip()
    except (OSError, subprocess.CalledProcessError):
        return "not known: no repository of git"


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout  # noqa: S603 # commands of this file
