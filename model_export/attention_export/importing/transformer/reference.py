"""The source of an imported model, run by `transformers` in eager mode: the values that a version must reproduce.

Parameters are in memory while an operation takes them, so that a model of any size is run.
"""

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PretrainedConfig
from transformers.utils.generic import ModelOutput

from attention_export.importing import ImportFailure
from attention_export.importing.transformer.experts import EAGER, set_experts
from attention_export.importing.transformer.sides import TARGET, stacks
from attention_export.importing.transformer.sides import arguments as arguments_of
from attention_export.importing.transformer.values import Values, ValuesOnUse, without_values

Array = NDArray[Any]
Arguments = dict[str, Array]  # of the source's forward: `input_ids`, `attention_mask`, .., all [B, T]


@dataclass(frozen=True)
class StackStages:
    """The stages of an encoder or a decoder, in the precision of its parameters.

    Attributes:
        hidden: hidden states; the first one is `embeddings`, the last one the model's own output: [B, T, D] each.
        weights: of each attention, in the order of computation: [B, H, T, S] each.
    """

    hidden: list[Array]
    weights: list[Array]


@dataclass(frozen=True)
class SourceStages:
    """The stages of the source.

    Attributes:
        stacks: of each sequence, as in `sides.stacks`.
        logits: of the head: [B, T, labels] or [B, labels]; None in a base model.
    """

    stacks: list[StackStages]
    logits: Array | None = None


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module: the call's number among those of the same module, and its input and result."""

    path: str
    number: int
    argument: Array | None
    result: Array


@dataclass
class CallRecorder:
    """Records calls of modules by forward hooks, within a `with` block."""

    modules: dict[str, nn.Module]
    calls: list[ModuleCall] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._handles = [
            module.register_forward_hook(self._hook(path), with_kwargs=True) for path, module in self.modules.items()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, path: str) -> Any:
        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
            first = result[0] if isinstance(result, tuple | ModelOutput) else result
            if isinstance(first, Tensor):
                number = sum(call.path == path for call in self.calls)
                argument = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
                self.calls.append(
                    ModuleCall(path, number, None if argument is None else argument.numpy(), first.numpy())
                )

        return record


class EagerModel:
    """A copy of the source in one precision, with the attention that `transformers` writes out (`eager`).

    Args:
        model: the source; left as it is.
        values: of its parameters.
        dtype: of the parameters.

    Raises:
        ImportFailure: `transformers` has no eager attention for the model.
    """

    def __init__(self, model: nn.Module, values: Values, dtype: torch.dtype) -> None:
        # A copy of the config too: `set_attn_implementation` writes into it, and models made of one config share it.
        self.model = without_values(model, dtype).eval()
        self.values = values
        self.model.set_attn_implementation("eager")
        set_experts(self.model, EAGER)
        for module in self.model.modules():
            config = getattr(module, "config", None)
            if isinstance(config, PretrainedConfig) and _attention(config) != "eager":
                raise ImportFailure(
                    f"{type(module).__name__} computes its attention by {_attention(config)!r} and cannot be set to "
                    "`eager`, which alone returns weights to be compared with"
                )
        self.parameters = set(inspect.signature(self.model.forward).parameters)

    def run(self, arguments: Arguments) -> SourceStages:
        """Compute all stages of sequences.

        Raises:
            ImportFailure: the source does not tell its weights or hidden states.
        """
        options = {"output_attentions": True, "output_hidden_states": True, "return_dict": True}
        if "use_cache" in self.parameters:
            options["use_cache"] = False
        tensors = {name: torch.tensor(x) for name, x in arguments.items()}
        modules = {side.result: stack for side, stack in stacks(self.model).items()}
        with torch.no_grad(), ValuesOnUse(self.model, self.values), CallRecorder(modules) as recorder:
            result = self.model(**tensors, **options)
        outputs = {call.path: call.result for call in recorder.calls}
        found = [self._stages(result, prefix, outputs[prefix]) for prefix in modules]
        logits = result.get("logits")
        return SourceStages(found, None if logits is None else logits.numpy())

    def _stages(self, result: Any, prefix: str, output: Array) -> StackStages:
        """Return the stages of a stack, of the results of the model that begin with a prefix, and of its own output."""
        names = [f"{prefix}attentions", f"{prefix}hidden_states"]
        names += ["cross_attentions"] if prefix == TARGET.result else []
        missing = [name for name in names if not result.get(name) or any(each is None for each in result[name])]
        if missing:
            raise ImportFailure(
                f"{type(self.model).__name__} does not return its {missing[0]}, which the version has to be compared "
                "with"
            )
        own, hidden, *cross = (list(result[name]) for name in names)
        # In a layer of a decoder the attention to the source follows that to the target.
        weights = own if not cross else [each for layer in zip(own, *cross, strict=True) for each in layer]
        return StackStages([*(state.numpy() for state in hidden[:-1]), output], [each.numpy() for each in weights])

    def record(self, arguments: Arguments, paths: Iterable[str]) -> tuple[SourceStages, list[ModuleCall]]:
        """Compute all stages of sequences, and return the calls of modules too, in order."""
        modules = dict(self.model.named_modules())
        with CallRecorder({path: modules[path] for path in paths}) as recorder:
            stages = self.run(arguments)
        return stages, recorder.calls

    def matrices(self) -> list[str]:
        """Return the paths of the modules that hold a matrix."""
        return [path for path, module in self.model.named_modules() if _has_matrix(module)]

    def module_path(self, path: str) -> str:
        """Return a module's path in this model, of a path in it or in its base model.

        Raises:
            ImportFailure: there is no such module.
        """
        prefix = getattr(self.model, "base_model_prefix", "")
        modules = dict(self.model.named_modules())
        for candidate in (path, f"{prefix}.{path}"):
            if candidate in modules:
                return candidate
        raise ImportFailure(f"{type(self.model).__name__} has no module {path!r}")


class Reference:
    """The source in float64, where it computes in it, and in float32.

    Args:
        model: the source; left as it is.
        values: of its parameters, in float32.
    """

    def __init__(self, model: nn.Module, values: Values) -> None:
        self._model, self._values = model, values
        self.single = EagerModel(model, values, torch.float32)
        self.notes: list[str] = []
        self.exact = self._float64() or self.single

    @property
    def is_exact(self) -> bool:
        """Whether the reference is float64, so that the error of the source's own float32 is known."""
        return self.exact is not self.single

    @cached_property
    def description(self) -> str:
        """Return `Parity.reference`: library, version, attention and precision."""
        parts = ["transformers " + transformers.__version__, "eager", "float64" if self.is_exact else "float32"]
        return ", ".join(parts + self.notes)

    def _float64(self) -> EagerModel | None:
        model = EagerModel(self._model, self._values, torch.float64)
        names = {name for name in ("attention_mask",) if name in model.parameters}
        probe = arguments_of({side: np.ones((1, 3), np.int64) for side in stacks(model.model)})
        probe |= {name: np.ones((1, 3), np.int64) for name in names}
        casts = _Casts()
        try:
            with casts:
                model.run(probe)
        except RuntimeError as error:  # of torch, where a matrix of one type meets the other
            self.notes.append(f"since float64 fails ({str(error).splitlines()[0]})")
            return None
        if casts.found:
            self.notes.append(f"but float32 in {', '.join(sorted(casts.found))}")
        return model


class _Casts(TorchDispatchMode):
    """Finds the operations that a model in float64 computes in float32 all the same."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[str] = set()

    def __torch_dispatch__(
        self, operation: Any, _: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        named = COMPUTING.get(operation.overloadpacket.__name__)
        if named and any(x.dtype == torch.float32 for x in _tensors(result)):
            self.found.add(named)
        return result


COMPUTING = {
    "_softmax": "softmax",
    "native_layer_norm": "normalisation",
    "rsqrt": "normalisation",
    "cos": "rotary positions",
    "mm": "products",
    "addmm": "products",
    "bmm": "products",
    "tanh": "activations",
    "gelu": "activations",
}


def _tensors(result: Any) -> Iterator[Tensor]:
    for each in result if isinstance(result, tuple | list) else [result]:
        if isinstance(each, Tensor):
            yield each


def _attention(config: PretrainedConfig) -> str | None:
    name: str | None = config._attn_implementation  # noqa: SLF001 # it stands nowhere else
    return name


def _has_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 2 and not isinstance(module, nn.Embedding)
