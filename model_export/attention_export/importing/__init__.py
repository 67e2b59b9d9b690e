"""Attention that was trained elsewhere, as blocks: only safetensors, or PyTorch files read with `weights_only`."""

import re
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

CALLED = re.compile(r"GLOBAL (\S+)")  # the function or class that a pickled file names, in PyTorch's refusal


class ImportFailure(ValueError):
    """A file does not hold what can be imported; names the missing part or the obstacle."""


def reason(error: Exception) -> str:
    """Return a library's error as at most 300 characters of one line, without its advice to run a file's code."""
    if not isinstance(error, UnpicklingError):
        return " ".join(str(error).split())[:300]
    if found := CALLED.search(str(error)):
        return f"it holds {found[1]}, and only tensors are read"
    return "it is no file of PyTorch, or holds more than tensors"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a state dict, as float32.

    Raises:
        ImportFailure: the file is neither safetensors nor a PyTorch file of tensors alone.
    """
    try:
        tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    except Exception as error:  # each format has errors of its own; all mean the same here
        raise ImportFailure(f"{path} cannot be read as tensors: {reason(error)}") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ImportFailure(f"{path} holds no state dict: expected names and tensors")
    return {name: tensor.float() for name, tensor in tensors.items()}


def transposed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with every matrix transposed: the weights of `nn.Linear`, [out, in], as [in, out]."""
    return {name: tensor.T if tensor.dim() == 2 else tensor for name, tensor in tensors.items()}


def take(tensors: dict[str, Tensor], name: str) -> Tensor:
    """Return a tensor by name.

    Raises:
        ImportFailure: it is not there.
    """
    if name not in tensors:
        raise ImportFailure(f"there is no tensor {name!r}; there is {', '.join(sorted(tensors)[:8])}, ..")
    return tensors[name]


def fill(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Set a module's parameters.

    Raises:
        ImportFailure: a tensor is missing, left over or of another shape.
    """
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ImportFailure(str(error)) from error
