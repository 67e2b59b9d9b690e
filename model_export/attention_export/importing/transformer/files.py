"""The files of a checkpoint's tensors: safetensors or pickled tensors alone, sharded or not."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from attention_export.importing import ImportFailure, reason

Reader = Callable[[], Tensor]
"""Reads one tensor of a file."""

WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file."""

    shape: tuple[int, ...]
    floating: bool
    read: Reader


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a checkpoint by name, without reading these.

    Raises:
        ImportFailure: there are none, or a file holds more than tensors.
    """
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).exists():
            paths = [folder / name]
        elif index.exists():
            paths = _shards(index)
        else:
            continue
        tensors: dict[str, StoredTensor] = {}
        for path in paths:
            tensors |= _safetensors(path) if name.endswith(".safetensors") else _pickled(path)
        return tensors
    raise ImportFailure(f"{folder} has neither {' nor '.join(WEIGHTS)}, nor an index of shards of one of them")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ImportFailure(f"{index} is no index of shards: {error!r}") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (index.parent / name).is_file():
            raise ImportFailure(f"{index} names a shard {name!r}, which is not there")
    return [index.parent / name for name in names]


def _safetensors(path: Path) -> dict[str, StoredTensor]:
    def read(name: str) -> Tensor:
        with safe_open(path, "pt") as file:  # closed each time, so that no page of it stays mapped
            return cast("Tensor", file.get_tensor(name))

    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 # it is no dict
            return {
                name: StoredTensor(tuple(s.get_shape()), "F" in s.get_dtype(), partial(read, name))
                for name, s in slices.items()
            }
    except (OSError, SafetensorError) as error:
        raise ImportFailure(f"{path} cannot be read as safetensors: {error}") from error


def _pickled(path: Path) -> dict[str, StoredTensor]:
    try:
        tensors = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except RuntimeError:  # written in the old format, which cannot be mapped
        tensors = _unmapped(path)
    except Exception as error:
        raise ImportFailure(f"{path} cannot be read as tensors alone: {reason(error)}") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ImportFailure(f"{path} holds no state dict: expected names and tensors")
    return {
        name: StoredTensor(tuple(tensor.shape), tensor.is_floating_point(), partial(_same, tensor))
        for name, tensor in tensors.items()
    }


def _unmapped(path: Path) -> Any:
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise ImportFailure(f"{path} cannot be read as tensors alone: {reason(error)}") from error


def _same(tensor: Tensor) -> Tensor:
    return tensor
