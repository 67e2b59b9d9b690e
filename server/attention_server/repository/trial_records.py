"""Results of trials, kept in a folder: one program on one machine tries the same bytes once."""

import functools
import hashlib
import importlib.metadata
import json
import platform
import secrets
from contextlib import suppress
from pathlib import Path

import attention_proto
import structlog
from attention_proto.folder import MANIFEST
from pydantic import TypeAdapter, ValidationError

import attention_server
from attention_server.repository.loader import Tried

PROCESSOR = ("vendor_id", "model name", "flags", "Features", "CPU implementer", "CPU part")  # of /proc/cpuinfo
MAX_BYTES = 2**20  # of a record

log = structlog.get_logger()
_adapter = TypeAdapter(Tried)


class TrialRecords:
    """The records of a folder, one file each.

    A record's name is a hash of all that its content depends on: the manifest, and so the bytes of all files; the
    source of this program; the versions of onnxruntime and NumPy; the device; and the processor. So a record needs no
    date. The folder is to be writable by the server alone: a record written by hand lets a version pass unprobed.

    Args:
        folder: of the records; made when the first is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, version: Path, device: str) -> Tried | None:
        """Return the result of the trial of a version's folder; None where it was not tried, or cannot be read."""
        with suppress(OSError, ValidationError):
            digest = hashlib.sha256((version / MANIFEST).read_bytes()).hexdigest()
            with self._path(digest, device).open("rb") as file:
                found = _adapter.validate_json(file.read(MAX_BYTES))
            if (found.digest, found.device) == (digest, device):
                return found
        return None

    def keep(self, tried: Tried) -> None:
        """Keep a result; a folder that cannot be written is logged."""
        path = self._path(tried.digest, tried.device)
        aside = path.with_suffix(f".{secrets.token_hex(8)}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(_adapter.dump_json(tried))
            aside.replace(path)
        except OSError as error:
            log.warning("the result of a trial cannot be kept", folder=str(self._folder), reason=error.strerror)

    def _path(self, digest: str, device: str) -> Path:
        parts = [digest, device, *_machine()]
        return self._folder / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()}.json"


@functools.cache
def _machine() -> tuple[str, ...]:
    """Return what results depend on beside a version: the source of this program, onnxruntime and the processor."""
    source = hashlib.sha256()
    for package in (attention_server, attention_proto):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            source.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    runtimes = [
        f"{each.name} {each.version}"
        for each in importlib.metadata.distributions()
        if (each.name or "").startswith(("onnxruntime", "numpy"))
    ]
    return source.hexdigest(), *sorted(runtimes), _processor()


def _processor() -> str:
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        return "\n".join(line for line in lines if line.startswith(PROCESSOR))
    return platform.processor()
