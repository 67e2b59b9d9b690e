"""The source as one ONNX graph in which each attention is a node without values.

Parameters are fake while the source is traced: a shape without memory. Values come from the files, for one
segment at a time, when the graph has been cut.
"""

import copy
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from transformers import AttentionInterface, PreTrainedModel

from attention_export.graphs import OPSET
from attention_export.importing import ImportFailure
from attention_export.importing.transformer.adapters import ADAPTED, ADAPTERS, adapt
from attention_export.importing.transformer.experts import NAME as EXPERTS
from attention_export.importing.transformer.experts import set_experts
from attention_export.importing.transformer.interface import NAME, SiteCall, SiteRecorder
from attention_export.importing.transformer.rotations import fix_rotations
from attention_export.importing.transformer.sides import (
    POSITIONS,
    SOURCE,
    TOKENS,
    TYPES,
    Side,
    arguments,
    given_positions,
    stacks,
)
from attention_export.importing.transformer.source import Source, quiet
from attention_export.importing.transformer.values import ValuesOnUse
from attention_export.operators import keep_signatures, skip_decompositions

BATCH = "B"
EXAMPLE = (2, 9)  # sizes of the traced sequences, unlike each other and unlike 1
EXAMPLE_OF_SOURCE = (2, 7)
PREFIX = "model."  # of parameters' names in the traced graph


@dataclass(frozen=True)
class Trace:
    """The traced source.

    Attributes:
        model: ONNX, with sites as nodes; parameters without values.
        sites: in the order of computation.
        names: of the graph's outputs: of each side `last` (the base model's own output) and `hidden_0`, .. (hidden
            states; the first one is the input of the first layer), with its prefix; `returned_0`, .. (results of the
            sites' modules), and `logits`.
        position_base: position of the first token.
        sides: the sequences, the source's first.
    """

    model: ir.Model
    sites: tuple[SiteCall, ...]
    names: tuple[str, ...]
    position_base: int
    sides: tuple[Side, ...]

    @property
    def outputs(self) -> dict[str, ir.Value]:
        """The graph's outputs by name."""
        return dict(zip(self.names, self.model.graph.outputs, strict=True))


def trace(source: Source) -> Trace:
    """Trace a source.

    Raises:
        ImportFailure: the model cannot be traced, or calls no attention through the interface.
    """
    model = _copy(source)
    recorder = SiteRecorder({module: path for path, module in model.named_modules()})
    with _silent():
        AttentionInterface.register(NAME, _stop)
        if model._can_set_attn_implementation():  # noqa: SLF001 # asks without a warning
            model.set_attn_implementation(NAME)
        set_experts(model, EXPERTS)
        if not _attends(model):
            raise _beside(source)
        base = position_base(model)
        AttentionInterface.register(NAME, recorder.attend)
        with ValuesOnUse(model, source.value):  # adapters compute biases of parameters
            adapt(model, recorder.attend)
        fix_rotations(model)
        fakes = FakeTensorMode(allow_non_fake_inputs=True)
        _make_fake(model, fakes)
        wrapper = _Wrapper(model, recorder)
        with fakes:
            exported = _export(wrapper)
    if not recorder.calls:
        raise _beside(source)
    return Trace(exported, tuple(recorder.calls), tuple(recorder.outputs), base, tuple(stacks(model)))


def _copy(source: Source) -> PreTrainedModel:
    """Copy the source's model without the memory of parameters."""
    model = source.skeleton
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def _make_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    fakes: dict[int, nn.Parameter] = {}  # by parameter, so that tied ones stay tied
    for module in model.modules():
        for name, parameter in module._parameters.items():  # noqa: SLF001 # assignment by attribute checks the type
            if parameter is None:
                continue
            if id(parameter) not in fakes:
                fakes[id(parameter)] = nn.Parameter(mode.from_tensor(parameter.data), requires_grad=False)
            module._parameters[name] = fakes[id(parameter)]  # noqa: SLF001


class _Wrapper(nn.Module):
    """The model as a function of the inputs of each side, which gives every tensor that may be served."""

    def __init__(self, model: PreTrainedModel, recorder: SiteRecorder) -> None:
        super().__init__()
        self.model = model
        self.recorder = recorder
        self.stacks = stacks(model)
        self.inputs = [name for side in self.stacks for name in side.inputs]

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        self.recorder.calls.clear()
        inputs = dict(zip(self.inputs, given, strict=True))
        results: dict[Side, Any] = {}
        with _returned(self.model, self.recorder) as returned, ExitStack() as contexts:
            for side, stack in self.stacks.items():
                own = {name: inputs[traced] for traced, name in side.inputs.items()}
                contexts.enter_context(_served(stack, own, partial(results.__setitem__, side)))
            result = self.model(**arguments({side: inputs[side.name(TOKENS)] for side in self.stacks}))
        outputs = {}
        for side, each in results.items():
            outputs[side.name("last")] = each.last_hidden_state
            outputs |= {side.name(f"hidden_{index}"): state for index, state in enumerate(each.hidden_states or ())}
        outputs |= {f"returned_{index}": value for index, value in returned.items()}
        if "logits" in result:
            outputs["logits"] = result.logits
        self.recorder.outputs = list(outputs)
        return tuple(outputs.values())


@contextmanager
def _served(stack: Any, inputs: dict[str, Tensor], keep: Callable[[Any], None]) -> Iterator[None]:
    """Call a stack with positions and token types, where it takes any, and keep its result."""
    taken = inspect.signature(stack.forward).parameters
    given = {name: value for name, value in {**inputs, "use_cache": False}.items() if name in taken}
    # A model without a table of types, such as GPT-2, embeds token types as words, if it is given any.
    if not getattr(stack.config, "type_vocab_size", 0):
        given.pop(TYPES, None)

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        return args, kwargs | given | {"output_hidden_states": True, "return_dict": True}

    def behind(_: nn.Module, __: Any, result: Any) -> None:
        keep(result)

    hooks = _hooks(stack.register_forward_pre_hook(before, with_kwargs=True), stack.register_forward_hook(behind))
    with hooks, nullcontext() if POSITIONS in given else given_positions(stack, inputs[POSITIONS]):
        yield


@contextmanager
def _silent() -> Iterator[None]:
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")  # reports torchvision's absence
    with quiet(), redirect_stderr(StringIO()), redirect_stdout(StringIO()):
        disabled, registration.disabled = registration.disabled, True
        try:
            yield
        finally:
            registration.disabled = disabled


@contextmanager
def _hooks(*handles: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _returned(model: nn.Module, recorder: SiteRecorder) -> Iterator[dict[int, Tensor]]:
    """Yield the results of modules that called the attention, by site."""
    found: dict[int, Tensor] = {}

    def behind(module: nn.Module, _: Any, result: Any) -> None:
        first = result[0] if isinstance(result, tuple) else result
        last = len(recorder.calls) - 1
        if isinstance(first, Tensor) and last >= 0 and recorder.calls[last].module is module:
            found[last] = first

    with _hooks(*(module.register_forward_hook(behind) for module in model.modules())):
        yield found


def _export(wrapper: _Wrapper) -> ir.Model:
    examples: tuple[Tensor, ...] = ()
    shapes: list[dict[int, Dim]] = []
    batch = Dim(BATCH)
    for side in wrapper.stacks:
        size = EXAMPLE_OF_SOURCE if side is SOURCE else EXAMPLE
        examples += tuple(torch.zeros(size, dtype=torch.int64) for _ in side.inputs)
        shapes += [{0: batch, 1: _length(wrapper.model, side)}] * len(side.inputs)
    keep_signatures()
    try:
        program = torch.export.export(wrapper.eval(), examples, dynamic_shapes=(tuple(shapes),), strict=False)
        exported = torch.onnx.export(
            skip_decompositions(program),
            examples,
            dynamo=True,
            opset_version=OPSET,
            input_names=wrapper.inputs,
            dynamic_shapes=(tuple(shapes),),
            optimize=False,  # parameters have no values yet
            verbose=False,
        )
    except Exception as error:  # each model fails in its own way
        raise _refusal(wrapper.model, error) from error
    assert exported is not None
    return exported.model


def _length(model: PreTrainedModel, side: Side) -> Dim:
    """Return the dimension of sequences, which some models, such as CLIP, compare with positions."""
    longest = getattr(model.config, "max_position_embeddings", None) or 0
    return Dim(side.length, max=longest) if longest > EXAMPLE[1] else Dim(side.length)


def _refusal(model: nn.Module, error: BaseException) -> ImportFailure:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ImportFailure):
            return cause
        cause = cause.__cause__ or cause.__context__
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return ImportFailure(
        f"{type(model).__name__}{_with_experts(model)} cannot be traced as one graph for sequences of any length: "
        f"{type(error).__name__}: {reason}"
    )


def _with_experts(model: nn.Module) -> str:
    """Name a mixture of experts, for its choice is the likeliest reason that a model cannot be traced."""
    name = next((type(each).__name__ for each in model.modules() if "Experts" in type(each).__name__), "")
    return f", a mixture of experts ({name})," if name else ""


def _beside(source: Source) -> ImportFailure:
    return ImportFailure(
        f"{source.architecture} computes no attention, or computes it beside the attention interface of transformers; "
        f"adapters are there for {ADAPTED}"
    )


def _attends(model: PreTrainedModel) -> bool:
    """Whether a model calls the attention interface, which `_stop` stands for, or an adapter makes it do so."""
    if any(isinstance(module, tuple(ADAPTERS)) for module in model.modules()):
        return True
    first, *_ = stacks(model).values()
    try:
        with torch.no_grad():
            first(torch.zeros(EXAMPLE, dtype=torch.int64))
    except _Found:
        return True
    except Exception:  # noqa: BLE001 # each model fails in its own way, and the trace says how
        return True
    return False


class _Found(Exception):
    """Ends a pass: with the first row that a table of positions is asked for, or None at an attention."""


def position_base(model: PreTrainedModel) -> int:
    """Return the position that the model gives the first token by itself, 0 where it has no table of positions.

    The attention that is registered has to be `_stop`.

    Raises:
        ImportFailure: encoder and decoder begin at different positions.
    """
    bases = {_position_base(stack) for stack in stacks(model).values()}
    if len(bases) > 1:
        raise ImportFailure(f"encoder and decoder of {type(model).__name__} begin at different positions: {bases}")
    return bases.pop()


def _position_base(base: Any) -> int:
    """Ask which rows of its table a stack reads for four tokens, with and without given positions."""
    if POSITIONS not in inspect.signature(base.forward).parameters:
        return 0
    last = base.config.vocab_size - 1
    tokens = torch.tensor([[last, last - 2, last - 1, last - 2]])
    own, asked = _first_row(base, tokens), _first_row(base, tokens, position_ids=torch.arange(4).unsqueeze(0))
    return 0 if own is None or asked is None else own - asked


def _stop(*_: Any, **__: Any) -> Any:
    raise _Found(None)


def _first_row(base: Any, tokens: Tensor, **given: Tensor) -> int | None:
    """Return the first of four consecutive rows that a table is asked for, None if none is."""

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        for rows in (*args, *kwargs.values()):
            if isinstance(rows, Tensor) and rows.dtype == torch.int64 and rows.shape[-1:] == (4,):
                flat = rows.reshape(-1, 4)[0]
                if torch.equal(flat - flat[0], torch.arange(4)):
                    raise _Found(int(flat[0]))

    tables = [module for module in base.modules() if isinstance(module, nn.Embedding)]
    with _hooks(*(table.register_forward_pre_hook(before, with_kwargs=True) for table in tables)), torch.no_grad():
        try:
            base(tokens, **given)
        except _Found as found:
            row: int | None = found.args[0]
            return row
    return None
