"""Versions imported of tiny checkpoints, each made once in a run of the tests."""

import fcntl
from pathlib import Path

import torch
from export.checkpoints import import_by_command
from export.tiny_checkpoints import tiny_model, write_checkpoint
from transformers import PreTrainedModel


class TinyVersions:
    """Tiny checkpoints, and versions of them; each is made by the first test of any worker that asks for it.

    Kinds and tasks are those of `tiny_model`.

    Args:
        folder: shared by all workers.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        torch.set_num_threads(1)  # other workers have the other cores

    def checkpoint(self, kind: str, task: str = "") -> Path:
        """Return the folder of a checkpoint, which `version` makes."""
        return self._folder / "checkpoints" / _name(kind, task)

    def model(self, kind: str, task: str = "") -> PreTrainedModel:
        """Return the source; the same parameters in each process."""
        return tiny_model(kind, task=task)

    def version(self, kind: str, task: str = "") -> Path:
        """Return the folder of version 1, imported by the command; AssertionError has the words of a refusal."""
        name = _name(kind, task)
        version = self._folder / "models" / name / "1"
        with (self._folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not version.exists():
                write_checkpoint(self.checkpoint(kind, task), self.model(kind, task))
                result = import_by_command(self.checkpoint(kind, task), version.parents[1], name)
                assert result.exit_code == 0, result.output
        return version

    def serve_in(self, repository: Path, name: str, kind: str, task: str = "") -> None:
        """Put a version into a repository, under a name of its own."""
        repository.mkdir(parents=True, exist_ok=True)
        (repository / name).symlink_to(self.version(kind, task).parent)


def _name(kind: str, task: str) -> str:
    return f"{kind} {task}".strip().replace(" ", "-")
