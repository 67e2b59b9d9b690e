"""The Open Inference Protocol to and from the domain: dense batches by name become sequences, results dense batches.

Its forms on the wire are read and written by `oip_proto` and `oip_json`; what a request means is decided here, once.
"""

import functools
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
from attention_proto.masks import UNBOUNDED, Mask

from attention_server.codecs.batch import BATCHED
from attention_server.codecs.document import at_least_zero, choice, fields, integers, typed
from attention_server.domain import messages as domain
from attention_server.domain.call import CallContext
from attention_server.domain.limits import Limits
from attention_server.domain.messages import (
    NO_MASK,
    POOLS,
    PREDICTIONS,
    Array,
    OutputSpec,
    Request,
    Response,
    Result,
    TopK,
)
from attention_server.errors import InvalidRequest, NotFound, TooLarge
from attention_server.inference.planner import OF_KEYS, PAIRWISE
from attention_server.scheduling.future import Future
from attention_server.service.service import Service

Parameter = bool | int | float | str
Parameters = Mapping[str, Parameter]

RANKS = {"query": 3, "key": 3, "value": 3, "text": 1, "memory_text": 1, "query_lengths": 1, "key_lengths": 1}
ARRAYS = {"query", "key", "value"}
MASKS = ("allowed", "bias")
INPUTS = (*RANKS, *MASKS)
TOKENS = ("tokens", "memory_tokens")  # outputs that are no stage
PREDICTION_PARTS = ("name", "label", "probability", "row")
REQUEST_PARAMETERS = ("causal", "window_left", "window_right", "memory", "timeout")
OUTPUT_PARAMETERS = ("stage", "heads", "rows", "reduce", "top_k", "data_type", "layers", "pool")
# What says how something is sent, not what: each wire form reads its own.
OF_THE_WIRE = ("binary_data", "binary_data_output", "binary_data_size", "triton_enable_empty_final_response")
# How the protocol names what the core calls by the domain's names.
NAMES = {
    "mask.allowed": "allowed",
    "mask.bias": "bias",
    "mask.window": "parameters.window_left, parameters.window_right",
    "memory": "parameters.memory",
}
OUTPUT = re.compile(r"outputs\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output that is asked for, and its options."""

    name: str
    parameters: Parameters


@dataclass(frozen=True, slots=True)
class Infer:
    """A request of the protocol, whichever its form on the wire.

    Attributes:
        model, version: 0 is the default version.
        id: sent back.
        inputs: dense batches by name; texts as arrays of `str` objects.
        outputs: what is asked for; empty for what the model gives by default.
        parameters: of the request.
    """

    model: str
    version: int
    id: str
    inputs: Mapping[str, Array]
    outputs: tuple[Wanted, ...]
    parameters: Parameters


@dataclass(frozen=True, slots=True)
class Output:
    """A dense batch to send back; `wanted` is what asked for it, if anything did."""

    name: str
    array: Array
    wanted: Wanted | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent back for a request."""

    model: str
    version: int
    id: str
    outputs: tuple[Output, ...]


def answer(infer: Infer, service: Service, call: CallContext) -> Answer:
    """Answer a request of the protocol.

    Raises:
        AttentionServiceError: as `Service.attend`, the fields named as the protocol names them.
    """
    request = to_request(infer, service.limits)
    _shorten(call, infer.parameters)
    with _named_as_sent(infer):
        response = service.attend(request, call)
    return from_response(response, infer, service.limits)


def submit(
    infer: Infer, service: Service, call: CallContext, admitted: Callable[[], None] | None = None
) -> tuple["Future[Response]", Callable[[Response], Answer]]:
    """Hand a request to the core; return what will hold the response, and what then writes it.

    Raises:
        AttentionServiceError: as `Service.submit`, the fields named as the protocol names them.
    """
    request = to_request(infer, service.limits)
    _shorten(call, infer.parameters)
    with _named_as_sent(infer):
        future = service.submit(request, call, admitted)
    return future, functools.partial(from_response, infer=infer, limits=service.limits)


def to_request(infer: Infer, limits: Limits) -> Request:
    """Read a request.

    Raises:
        InvalidRequest: an input, output or parameter is unknown, or of another type or shape.
        TooLarge: there are more sequences than a request may have.
    """
    own = {name: value for name, value in infer.parameters.items() if "." not in name and name not in OF_THE_WIRE}
    fields(own, "parameters", REQUEST_PARAMETERS)
    fields(dict(infer.inputs), "inputs", INPUTS)
    mask = Mask(
        causal=choice(own, "causal", ("none", "top_left", "bottom_right"), "none", "parameters"),
        window=(
            typed(own, "window_left", int, UNBOUNDED, "parameters"),
            typed(own, "window_right", int, UNBOUNDED, "parameters"),
        ),
    )
    memory = typed(own, "memory", str, "", "parameters")
    options = _options(infer)
    return Request(
        model=infer.model,
        version=infer.version,
        inputs=tuple(_sequences(infer.inputs, memory, limits)),
        outputs=tuple(
            _spec(wanted.name, chosen, f"outputs[{i}]")
            for i, (wanted, chosen) in enumerate(zip(infer.outputs, options, strict=True))
            if _is_computed(wanted.name)
        ),
        mask=NO_MASK if mask.is_open else mask,
    )


def from_response(response: Response, infer: Infer, limits: Limits) -> Answer:
    """Write a response: what was asked for, in that order; what is shorter than the longest is padded with zeros.

    Raises:
        TooLarge: padded, it is over the limit of an answer.
        InvalidRequest: tokens were asked for and there are none.
    """
    options = _options(infer)
    stages = {wanted.name: _spec(wanted.name, each, "") for wanted, each in zip(infer.outputs, options, strict=True)}
    memory = typed(infer.parameters, "memory", str, "", "parameters")
    padded: dict[str, Array] = {}
    size = 0
    for name, arrays, least, empty in _ragged(list(response.each()), stages, _longest(infer.inputs, memory)):
        shape = tuple(map(max, zip_longest(*(array.shape for array in arrays), least, fillvalue=0)))
        size += len(arrays) * math.prod(shape) * arrays[0].itemsize
        if size > limits.answer_bytes:
            raise TooLarge(
                f"the answer would be at least {size} bytes, padded to the longest sequence; {limits.answer_bytes} may "
                "be sent: ask for less, or send fewer sequences, of more equal lengths, in one request",
                field="outputs",
            )
        padded[name] = _pad(arrays, shape, empty)
    outputs = _chosen(padded, infer) if infer.outputs else (Output(name, each, None) for name, each in padded.items())
    return Answer(response.model, response.version, infer.id, tuple(outputs))


def _options(infer: Infer) -> list[Parameters]:
    """Return the options of each output: its own, and those among the request's that are named OUTPUT.OPTION."""
    named: dict[str, dict[str, Parameter]] = {wanted.name: {} for wanted in infer.outputs}
    for name, value in infer.parameters.items():
        output, dot, option = name.rpartition(".")
        if not dot:
            continue
        if output not in named:
            raise InvalidRequest(
                f"names no output that is asked for: {', '.join(named) or 'none is named'}", field=f"parameters.{name}"
            )
        named[output][option] = value
    found: list[Parameters] = []
    for i, wanted in enumerate(infer.outputs):
        own = {name: value for name, value in wanted.parameters.items() if name not in OF_THE_WIRE}
        chosen: Parameters = {**own, **named[wanted.name]}
        fields(chosen, f"outputs[{i}].parameters", OUTPUT_PARAMETERS)
        if chosen and (not _is_computed(wanted.name) or _is_predictions(wanted.name)):
            raise InvalidRequest(f"{wanted.name} takes no options", field=f"outputs[{i}].parameters")
        found.append(chosen)
    return found


def _is_computed(name: str) -> bool:
    return name not in TOKENS


def _is_predictions(name: str) -> bool:
    stem, _, part = name.partition(".")
    return stem == PREDICTIONS and part in ("", *PREDICTION_PARTS)


def _spec(name: str, options: Parameters, path: str) -> OutputSpec:
    """Read an output: its name is that of a stage, or of its own where `stage` says which one it is."""
    if _is_predictions(name):
        return OutputSpec(PREDICTIONS)
    layers = typed(options, "layers", str, "", path)
    return OutputSpec(
        name=typed(options, "stage", str, name, path),
        alias=name,
        heads=_integers(options, "heads", path, minimum=0),
        rows=_integers(options, "rows", path),
        reduce=choice(options, "reduce", ("none", "mean", "max"), "none", path),
        top_k=at_least_zero(typed(options, "top_k", int, 0, path), f"{path}.top_k"),
        data_type=choice(options, "data_type", ("FP32", "FP16"), "FP32", path),
        layers=tuple(layers.split(",")) if layers else (),
        pool=choice(options, "pool", POOLS, "none", path),
    )


def _integers(options: Parameters, name: str, path: str, minimum: int = -(2**31)) -> tuple[int, ...]:
    """Read a list, which the protocol has no type for: one integer, or several in a string, between commas."""
    sent = options.get(name)
    if not isinstance(sent, str):
        return integers({name: None if sent is None else [sent]}, name, path, minimum)
    try:
        numbers = [int(each) for each in sent.split(",")]
    except ValueError as error:
        raise InvalidRequest("must be integers, with commas between them", field=f"{path}.{name}") from error
    return integers({name: numbers}, name, path, minimum)


def _shorten(call: CallContext, parameters: Parameters) -> None:
    """Wait no longer than the parameter `timeout` says, in microseconds; 0 is for ever."""
    microseconds = parameters.get("timeout", 0)
    if isinstance(microseconds, bool) or not isinstance(microseconds, int) or microseconds < 0:
        raise InvalidRequest("must be an integer number of microseconds, 0 or above", field="parameters.timeout")
    if microseconds:
        call.deadline = min(call.deadline, time.monotonic() + microseconds / 1e6)


def _sequences(inputs: Mapping[str, Array], memory: str, limits: Limits) -> Iterator[domain.Sequence]:
    """Yield the sequences that a dense batch stands for, each as long as the lengths say."""
    batch = _batch(inputs, limits)
    if not batch:
        yield domain.Sequence()  # the core says what is missing
        return
    query, key, value = (inputs.get(name) for name in ("query", "key", "value"))
    text, memory_text = inputs.get("text"), inputs.get("memory_text")
    if batch > 1 and not memory and inputs.keys() <= ARRAYS and _lie_alike(inputs):
        yield domain.Sequence(query=query, key=key, value=value, part=0, batch=batch)
        return
    longest = _longest(inputs, memory)
    queries = _lengths(inputs, "query", batch)
    keys = queries if longest.own_keys and "key_lengths" not in inputs else _lengths(inputs, "key", batch)
    for i in range(batch):
        mask = {name: _mask(inputs[name], i, batch, name) for name in MASKS if name in inputs}
        yield domain.Sequence(
            part=i if batch > 1 else None,
            query=None if query is None else query[i, : queries[i]],
            key=None if key is None else key[i, : keys[i]],
            value=None if value is None else value[i, : keys[i] or None],
            text=None if text is None else text[i],
            memory_text=None if memory_text is None else memory_text[i],
            memory=memory,
            mask=Mask(**{name: _trim(each, longest, queries[i], keys[i]) for name, each in mask.items()})
            if mask
            else NO_MASK,
        )


def _lie_alike(inputs: Mapping[str, Array]) -> bool:
    """Return whether a value, where it is sent, is as long as what it goes with."""
    value = inputs.get("value")
    return value is None or value.shape[1] == inputs.get("key", inputs["query"]).shape[1]


class _Longest(NamedTuple):
    """The lengths of the dense batches, T and S, 0 where they are not known; and whether the keys are the query's."""

    queries: int
    keys: int
    own_keys: bool


def _longest(inputs: Mapping[str, Array], memory: str) -> _Longest:
    query, key = inputs.get("query"), inputs.get("key")
    queries = 0 if query is None else query.shape[1]
    own_keys = key is None and "memory_text" not in inputs and not memory
    return _Longest(queries, queries if own_keys else 0 if key is None else key.shape[1], own_keys)


def _batch(inputs: Mapping[str, Array], limits: Limits) -> int:
    """Return how many sequences there are, having checked that all inputs have as many; 0 without query or text."""
    for name, rank in RANKS.items():
        if name in inputs and inputs[name].ndim != rank:
            expected = "[batch, length, width]" if rank > 1 else "[batch]"
            raise InvalidRequest(f"must have shape {expected}, not {list(inputs[name].shape)}", field=name)
        if name in inputs and (inputs[name].dtype == object) != name.endswith("text"):
            raise InvalidRequest(f"must {'' if name.endswith('text') else 'not '}be BYTES", field=name)
    first = next((name for name in ("query", "text") if name in inputs), None)
    if first is None:
        return 0
    batch = len(inputs[first])
    if not batch:
        raise InvalidRequest("is a batch of no sequences", field=first)
    limits.check_sequences(batch, first)
    for name in RANKS:
        if name in inputs and len(inputs[name]) != batch:
            raise InvalidRequest(f"has {len(inputs[name])} sequences, but {first} has {batch}", field=name)
    return batch


def _lengths(inputs: Mapping[str, Array], name: str, batch: int) -> list[int]:
    """Return the length of each sequence of query or key; 0 where there is none."""
    field = f"{name}_lengths"
    lengths, dense = inputs.get(field), inputs.get(name)
    longest = 0 if dense is None else dense.shape[1]
    if lengths is None:
        return [longest] * batch
    if dense is None:
        raise InvalidRequest(f"goes with {name}, which was not sent", field=field)
    if lengths.dtype != np.int64:
        raise InvalidRequest(f"must be INT64, not {lengths.dtype}", field=field)
    found: list[int] = lengths.tolist()
    if not all(1 <= length <= longest for length in found):
        raise InvalidRequest(f"must be from 1 to {longest}, the length of {name}", field=field)
    return found


def _mask(array: Array, i: int, batch: int, name: str) -> Array:
    """Return one sequence's part of a mask, [B or 1, H or 1, T or 1, S or 1]; one of fewer dimensions is for all."""
    if array.dtype == object:
        raise InvalidRequest("must not be BYTES", field=name)
    if array.ndim <= BATCHED:
        return array
    if len(array) not in (1, batch):
        raise InvalidRequest(f"has {len(array)} sequences, but there are {batch}", field=name)
    part: Array = array[i if len(array) > 1 else 0]
    return part


def _trim(mask: Array, longest: _Longest, queries: int, keys: int) -> Any:
    """Return a mask without what stands for padding."""
    if mask.ndim and mask.shape[-1] == longest.keys:
        mask = mask[..., :keys]
    if mask.ndim > 1 and mask.shape[-2] == longest.queries:
        mask = mask[..., :queries, :]
    return mask


def _ragged(
    results: Sequence[Result], stages: Mapping[str, OutputSpec], longest: _Longest
) -> Iterator[tuple[str, list[Array], tuple[int, ...], object]]:
    """Yield each output: its name, each sequence's array, the least shape that it is padded to, and with what."""
    for name, first in results[0].outputs.items():
        least = _least(stages.get(name) or stages.get(name.rpartition("@")[0]) or OutputSpec(name), longest)
        values: list[Any] = [result.outputs[name] for result in results]
        if isinstance(first, TopK):
            common = np.result_type(*(top.indices.dtype for top in values))
            yield f"{name}.indices", [top.indices.astype(common) for top in values], least, 0
            yield f"{name}.values", [top.values for top in values], least, 0
        else:
            yield name, values, least, 0
    yield from _predictions(results)
    for name in TOKENS:
        tokens = [getattr(result, name) for result in results]
        if all(each is not None for each in tokens):
            yield name, [_texts(each.shown) for each in tokens], (), ""


def _predictions(results: Sequence[Result]) -> Iterator[tuple[str, list[Array], tuple[int, ...], object]]:
    if results[0].predictions is None:
        return
    all_predictions = [result.predictions or () for result in results]
    yield f"{PREDICTIONS}.name", [_texts(each.name for each in some) for some in all_predictions], (), ""
    yield f"{PREDICTIONS}.label", [_texts(each.label for each in some) for some in all_predictions], (), ""
    probabilities: list[Array] = [np.array([each.probability for each in some], np.float32) for some in all_predictions]
    yield f"{PREDICTIONS}.probability", probabilities, (), 0
    rows: list[Array] = [
        np.array([-1 if each.row is None else each.row for each in some], np.int64) for some in all_predictions
    ]
    yield f"{PREDICTIONS}.row", rows, (), -1


def _least(spec: OutputSpec, longest: _Longest) -> tuple[int, ...]:
    """Return the shape that a stage has at least: as long as the batch that was sent, whatever its lengths say."""
    rows = 0 if spec.rows else longest.keys if spec.name in OF_KEYS else longest.queries
    columns = longest.keys if spec.name in PAIRWISE and not spec.top_k else 0
    shape = (columns,) if spec.pool != "none" else (rows, columns)
    return shape if spec.name == "output" else (0, *shape)


def _texts(texts: Iterable[str]) -> Array:
    return np.array(list(texts), dtype=object)


def _pad(arrays: Sequence[Array], shape: tuple[int, ...], empty: object) -> Array:
    if all(array.shape == shape for array in arrays):
        return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)
    dense = np.full((len(arrays), *shape), empty, arrays[0].dtype)
    for each, array in zip(dense, arrays, strict=True):
        each[tuple(map(slice, array.shape))] = array
    return dense


def _chosen(padded: Mapping[str, Array], infer: Infer) -> Iterator[Output]:
    """Yield what each output asked for has become: itself, its parts, or one for each of several layers."""
    sent: set[str] = set()
    for i, wanted in enumerate(infer.outputs):
        stems = (f"{wanted.name}.", f"{wanted.name}@")
        parts = [name for name in padded if name == wanted.name or name.startswith(stems)]
        if not parts:  # of what is computed, the core has said so before
            raise InvalidRequest("there are none: they are those of a text that was sent", field=f"outputs[{i}]")
        for name in parts:
            if name not in sent:
                sent.add(name)
                yield Output(name, padded[name], wanted)


@contextmanager
def _named_as_sent(infer: Infer) -> Iterator[None]:
    """Name the field at fault as the protocol does, whatever the core calls it."""
    computed = [i for i, wanted in enumerate(infer.outputs) if _is_computed(wanted.name)]
    try:
        yield
    except (InvalidRequest, TooLarge, NotFound) as error:
        field = NAMES.get(error.field, error.field)
        field = OUTPUT.sub(lambda found: f"outputs[{computed[int(found[1])]}]", field)
        raise type(error)(error.message, field=field) from error
