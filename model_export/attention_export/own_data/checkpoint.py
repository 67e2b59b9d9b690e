"""A run of training on disk: whole or not there, and only for the run it is of."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

FILE = "checkpoint.pt"


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or is of another run."""


def save_checkpoint(folder: Path, run: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write a checkpoint over the last one. Whenever this is cut short, one of the two is there, whole.

    Args:
        folder: made when absent.
        run: what the run depends on: data, options, seed.
        state: where it stands: tensors, numbers, strings, and lists and dicts of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{FILE}.partial"
    with partial.open("wb") as file:
        torch.save({"run": dict(run), "state": dict(state)}, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / FILE)
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)  # so that the new name outlives a loss of power as well
    finally:
        os.close(directory)


def load_checkpoint(folder: Path, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return where the run stood, or None when it has no checkpoint yet.

    Raises:
        CheckpointError: the file is damaged, or of another run; names what differs.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        content = torch.load(path, weights_only=True)
        saved, state = dict(content["run"]), dict(content["state"])
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is no checkpoint of this program, or is damaged; remove it") from error
    if different := [name for name in run if saved.get(name) != run[name]]:
        changes = "; ".join(_change(name, saved.get(name), run[name]) for name in different)
        raise CheckpointError(
            f"{path} is of another run: {changes}. Give what it was begun with, or another folder for this run"
        )
    return state


def _change(name: str, before: Any, now: Any) -> str:
    return "the data differs" if name == "data" else f"{name} was {before} and is {now}"
