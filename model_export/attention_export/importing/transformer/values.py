"""Parameters that are read for each operation, and dropped behind it."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

Values = Callable[[str], Tensor]
"""Returns a parameter's numbers by name."""


def without_values(model: nn.Module, dtype: torch.dtype) -> Any:
    """Return a copy of a model with parameters that take no memory; its buffers are real, in the given precision.

    Each number of a parameter is NaN until `ValuesOnUse` puts the value in its place, so that a parameter that is
    read in another way is found in the result.
    """
    placeholders: dict[int, Any] = {id(each): _placeholder(each, dtype) for each in model.parameters()}
    copied = copy.deepcopy(model, placeholders)  # tied parameters stay tied
    for module in copied.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                module._buffers[name] = buffer.to(dtype)  # noqa: SLF001 # assignment by attribute keeps no record
    return copied


def _placeholder(parameter: Tensor, dtype: torch.dtype) -> nn.Parameter:
    if not parameter.is_floating_point():
        return nn.Parameter(parameter.detach(), requires_grad=False)
    return nn.Parameter(torch.full((), torch.nan, dtype=dtype).expand(parameter.shape), requires_grad=False)


class ValuesOnUse(TorchDispatchMode):
    """Gives each operation the values of the parameters that it takes, one operation at a time.

    Args:
        model: one with parameters that have no values, such as those of `without_values`.
        values: of its parameters.
    """

    def __init__(self, model: nn.Module, values: Values) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {id(each): name for name, each in model.named_parameters() if each.is_floating_point()}
        self._values = values

    def __torch_dispatch__(
        self, operation: Any, _: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {name: self._value(each) for name, each in (kwargs or {}).items()}
        return operation(*map(self._value, args), **given)

    def _value(self, argument: Any) -> Any:
        """Return an operation's argument with values in place of parameters."""
        if isinstance(argument, list | tuple):
            return type(argument)(self._value(each) for each in argument)
        if not isinstance(argument, Tensor) or (name := self._names.get(id(argument))) is None:
            return argument
        return self._values(name).to(argument.dtype)
