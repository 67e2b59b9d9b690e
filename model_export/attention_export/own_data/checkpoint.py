"""Checkpoints of a training run: written atomically, and loaded for the same run only."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

FILE = "checkpoint.pt"


class CheckpointError(ValueError):
    """A checkpoint is damaged or belongs to another run."""


def save_checkpoint(folder: Path, run: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Replace the checkpoint atomically: after an interruption the folder has the old one or the new one, complete.

    Args:
        folder: the checkpoint's folder; made when absent.
        run: the parameters of the run: data, options, seed.
        state: the run's state: tensors, numbers, strings, and lists and dicts of these.
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
        os.fsync(directory)  # makes the rename durable
    finally:
        os.close(directory)


def load_checkpoint(folder: Path, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a run's saved state; None without a checkpoint.

    Raises:
        CheckpointError: the file is damaged, or belongs to another run; the message names the differences.
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
