"""Build requests from Python values."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
from attention_proto import codec, wire
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.stages import FOLDS, POOLS, REDUCES, numbers_of
from attention_proto.text import TRUNCATES, Truncate
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from numpy.typing import ArrayLike, NDArray

from attention_client.errors import InvalidRequest
from attention_client.inputs import Item, Output, OutputSpec, Sample, Sequence
from attention_client.memory import Memory
from attention_client.result import Ablation

ItemsT = TypeVar("ItemsT")

_CAUSAL = {
    "none": pb.Mask.CAUSAL_NONE,
    "top_left": pb.Mask.CAUSAL_TOP_LEFT,
    "bottom_right": pb.Mask.CAUSAL_BOTTOM_RIGHT,
}
_REDUCE = {None if name == "none" else name: n for name, n in numbers_of(REDUCES, pb.OutputSpec.Reduce.items()).items()}
_FOLD = {None if name == "none" else name: n for name, n in numbers_of(FOLDS, pb.OutputSpec.Fold.items()).items()}
_POOL = {None if name == "none" else name: n for name, n in numbers_of(POOLS, pb.OutputSpec.Pool.items()).items()}
_TRUNCATE = numbers_of(TRUNCATES, pb.Truncate.items())
_LARGE_BYTES = 2**17  # bytes
NUMBERS = "fiu"  # kinds of dtypes
_DATA_TYPE = {"FP32": pb.DATA_TYPE_FP32, "FP16": pb.DATA_TYPE_FP16}


def several(sequences: ItemsT) -> ItemsT:
    """Return sequences unchanged.

    Raises:
        InvalidRequest: one text, which would be taken for a text a letter, or one `Sequence`.
    """
    if isinstance(sequences, str | bytes | Sequence):
        kind = "`Sequence`" if isinstance(sequences, Sequence) else "text"
        raise InvalidRequest(f"is one {kind}, not several; write [it], or call attend", field="sequences")
    return sequences


def output_specs(outputs: Iterable[Output]) -> list[pb.OutputSpec]:
    """Return outputs in the form of the wire, which serves several requests even where `outputs` is an iterator.

    Raises:
        InvalidRequest: an output has no form on the wire, or `outputs` is a name and not a list.
    """
    if isinstance(outputs, str):
        raise InvalidRequest(f"must be a list; write [{outputs!r}]", field="outputs")
    return [_output(item, f"outputs[{i}]") for i, item in enumerate(outputs)]


def attend_request(
    model: str,
    sequences: Iterable[Item],
    outputs: Iterable[Output],
    version: int,
    token_offsets: bool,
    ablate: Iterable[Ablation | Mapping[str, Any]] = (),
    score_temperature: float | None = None,
) -> pb.AttendRequest:
    """Build the request for several sequences.

    Raises:
        InvalidRequest: a value has no form on the wire.
    """
    request = pb.AttendRequest(outputs=output_specs(outputs))
    _write_scalars(
        request, model=model, version=version, token_offsets=token_offsets, score_temperature=score_temperature
    )
    request.ablate.extend(_ablations(ablate))
    for i, item in enumerate(sequences):
        _write_sequence(item, request.inputs.add(), f"inputs[{i}]")
    return request


def packed_request(
    model: str,
    sequences: Iterable[Item],
    outputs: Iterable[Output],
    version: int,
    token_offsets: bool,
    ablate: Iterable[Ablation | Mapping[str, Any]] = (),
    score_temperature: float | None = None,
) -> pb.AttendRequest:
    """Build the request for several sequences; adjacent bare arrays are concatenated into one input with `lengths`.

    An error of the server about such an input does not name the position among `sequences`.

    Raises:
        InvalidRequest: a value has no form on the wire.
    """
    request = attend_request(model, (), outputs, version, token_offsets, ablate, score_temperature)
    position = 0
    for key, group in itertools.groupby(sequences, _packing_key):
        items = list(group)
        if key is None or len(items) == 1:
            for i, item in enumerate(items, position):
                _write_sequence(item, request.inputs.add(), f"inputs[{i}]")
        else:
            packed = request.inputs.add()
            arrays = [_bare_array(item).astype(key[0], copy=False) for item in items]  # type: ignore[union-attr] # all are
            packed.lengths.extend(map(len, arrays))
            codec.write_packed(arrays, packed.query)
        position += len(items)
    return request


def tensor_bytes(request: pb.AttendRequest) -> int:
    """Return the size of a request's vectors, at four bytes a number; protobuf's own size would serialize all."""
    tensors = ((sequence.query, sequence.key, sequence.value) for sequence in request.inputs)
    return 4 * sum(math.prod(tensor.shape) for each in tensors for tensor in each if tensor.shape)


def serialize(message: pb.AttendRequest | pb.AttendStreamRequest) -> bytes:
    """Return a message's bytes: of a large one without protobuf's copies."""
    request = message if isinstance(message, pb.AttendRequest) else message.request
    return wire.serialize(message) if tensor_bytes(request) > _LARGE_BYTES else message.SerializeToString()


def create_memory_request(
    model: str,
    key: ArrayLike | None,
    value: ArrayLike | None,
    memory_text: str | None,
    memory_token_ids: ArrayLike | None,
    truncate: Truncate,
    version: int,
    ttl: float | None,
    pinned: bool = False,
    data_type: str = "FP32",
) -> pb.CreateMemoryRequest:
    """Build the request for a memory.

    Raises:
        InvalidRequest: a value has no form on the wire.
    """
    request = pb.CreateMemoryRequest(ttl=_duration(ttl, "ttl"))
    _write_scalars(request, model=model, version=version, memory_text=memory_text, pinned=pinned)
    _write_numbers(key, request.key, "key")
    _write_numbers(value, request.value, "value")
    _write_ids(memory_token_ids, request, "memory_token_ids")
    with _named_field("truncate"):
        request.truncate = _choice(_TRUNCATE, truncate)
    with _named_field("data_type"):
        if data_type != "FP32":
            request.data_type = _choice(_DATA_TYPE, data_type)
    return request


def tokenize_request(
    model: str, texts: Iterable[str | tuple[str, str]], truncate: Truncate, memory: bool, version: int
) -> pb.TokenizeRequest:
    """Build the request for the tokens of texts.

    Raises:
        InvalidRequest: a value has no form on the wire, or `texts` is a text and not a list.
    """
    if isinstance(texts, str):
        raise InvalidRequest("must be a list; write [text]", field="texts")
    request = pb.TokenizeRequest()
    _write_scalars(request, model=model, version=version, memory=memory)
    with _named_field("truncate"):
        request.truncate = _choice(_TRUNCATE, truncate)
    for i, each in enumerate(texts):
        with _named_field(f"inputs[{i}]"):
            text, pair = (each, None) if isinstance(each, str) else each
            request.inputs.add(text=text, text_pair=pair)
    return request


def _ablations(ablate: Iterable[Ablation | Mapping[str, Any]]) -> Iterator[pb.Ablation]:
    for i, each in enumerate(ablate):
        with _named_field(f"ablate[{i}]"):
            own = each if isinstance(each, Ablation) else Ablation(**each)
            yield pb.Ablation(layers=_names(own.layers, "layers"), heads=own.heads)


def _packing_key(item: Item) -> "tuple[type[np.floating[Any]], int] | None":
    """Return the type and width of a bare array, by which adjacent ones are concatenated; else None."""
    array = _bare_array(item)
    if array is None or array.ndim != 2 or not array.size or array.dtype.kind not in NUMBERS:
        return None
    return _wire_type(array), array.shape[1]


def _bare_array(item: Item) -> NDArray[Any] | None:
    """Return the query of a sequence that is an array and has no further part; else None."""
    if isinstance(item, Sequence):
        if any(getattr(item, each.name) is not each.default for each in fields(item) if each.name != "query"):
            return None
        return item.query if isinstance(item.query, np.ndarray) else None
    return item if isinstance(item, np.ndarray) else None


def _write_sequence(item: Item, message: pb.Sequence, field: str) -> None:
    if isinstance(item, str):
        item = Sequence(text=item)
    elif not isinstance(item, Sequence):
        item = Sequence(query=item)
    for name in ("query", "key", "value"):
        _write_numbers(getattr(item, name), getattr(message, name), f"{field}.{name}")
    if len(message.query.shape) == 3:
        # On the wire [B, T, D] is B sequences; in this client each sequence has its own result.
        raise InvalidRequest("is a batch of rank 3; send its sequences by attend_batch", field=f"{field}.query")
    for name in ("token_ids", "memory_token_ids"):
        _write_ids(getattr(item, name), message, name, field)
    memory = item.memory.id if isinstance(item.memory, Memory) else item.memory
    texts = {"text": item.text, "text_pair": item.text_pair, "memory_text": item.memory_text}
    for name, text in texts.items():
        if text is not None and not isinstance(text, str | bytes):
            raise InvalidRequest(
                f"is one text, but {type(text).__name__} was given; attend_many and attend_batch take several",
                field=f"{field}.{name}",
            )
    _write_scalars(message, f"{field}.", **texts, memory=memory, extend=item.extend)
    if item.truncate != "none":
        with _named_field(f"{field}.truncate"):
            message.truncate = _choice(_TRUNCATE, item.truncate)
    has_mask = item.causal != "none" or any(each is not None for each in (item.window, item.allowed, item.bias))
    if has_mask or item.mask_layers:
        _write_mask(item, message.mask, f"{field}.mask")  # without a mask the server takes a faster path


def _write_scalars(message: Message, prefix: str = "", **values: object) -> None:
    """Set the fields of a message that have a value; an error names the field, after `prefix`."""
    for name, value in values.items():
        if value is not None:
            with _named_field(prefix + name):
                setattr(message, name, value)


def _write_mask(item: Sequence, message: pb.Mask, field: str) -> None:
    with _named_field(f"{field}.causal"):
        message.causal = _choice(_CAUSAL, item.causal)
    if item.window is not None:
        with _named_field(f"{field}.window"):
            message.window.left, message.window.right = item.window[0], item.window[1]
    if item.allowed is not None:
        codec.write(_booleans(item.allowed, f"{field}.allowed"), message.allowed)
    _write_numbers(item.bias, message.bias, f"{field}.bias")
    with _named_field(f"{field}.layers"):
        message.layers.extend(_names(item.mask_layers, "mask_layers"))


def _output(item: Output, field: str) -> pb.OutputSpec:
    if isinstance(item, pb.OutputSpec):
        return item
    with _named_field(field):
        spec = _spec(item)
        return pb.OutputSpec(
            name=spec.name,
            alias=spec.alias,
            heads=spec.heads,
            rows=spec.rows,
            reduce=_choice(_REDUCE, spec.reduce),
            top_k=spec.top_k,
            data_type=_choice(_DATA_TYPE, spec.data_type),
            layers=_names(spec.layers, "layers"),
            pool=_choice(_POOL, spec.pool),
            pairs=_names(spec.pairs, "pairs"),
            top=spec.top,
            sample=_sample(spec.sample),
            spans=itertools.starmap(_span, spec.spans.items()),
            fold=_choice(_FOLD, spec.fold),
            baseline=spec.baseline.id if isinstance(spec.baseline, Memory) else spec.baseline,
        )


def _span(name: str, given: tuple[int, int] | Mapping[str, Any]) -> pb.KeySpan:
    if isinstance(given, Mapping):
        return pb.KeySpan(name=name, **given)
    begin, end = given
    return pb.KeySpan(name=name, begin=begin, end=end)


def _sample(sample: Sample | Mapping[str, Any] | None) -> pb.Sample | None:
    if sample is None:
        return None
    given = sample if isinstance(sample, Sample) else Sample(**sample)
    return pb.Sample(temperature=given.temperature, top_k=given.top_k, top_p=given.top_p, seed=given.seed)


def _spec(item: str | OutputSpec | Mapping[str, Any]) -> OutputSpec:
    if isinstance(item, OutputSpec):
        return item
    if isinstance(item, str):
        return OutputSpec(item)
    return OutputSpec(**{"alias" if key == "as" else key: value for key, value in item.items()})


def _write_numbers(value: ArrayLike | None, message: pb.Tensor, field: str) -> None:
    """Write an array as float16 where it has that type, else as float32."""
    if value is None:
        return
    array = _array(value, field)
    if array.dtype.kind not in NUMBERS:
        raise InvalidRequest(f"holds {array.dtype}; it must hold numbers", field=field)
    codec.write(array.astype(_wire_type(array), copy=False), message)


def _write_ids(value: ArrayLike | None, message: Message, name: str, path: str = "") -> None:
    """Write ids of tokens into a field of a message.

    Raises:
        InvalidRequest: no list of integers, one is negative or too large, or there is none, which would be
            read as a field that is absent.
    """
    if value is None:
        return
    field = f"{path}.{name}" if path else name
    array = _array(value, field)
    if not array.size:
        raise InvalidRequest("is empty; send at least one token", field=field)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InvalidRequest(f"holds {array.dtype} {list(array.shape)}; it must be a list of integers", field=field)
    with _named_field(field):
        getattr(message, name).extend(array.tolist())


def _wire_type(array: NDArray[Any]) -> "type[np.floating[Any]]":
    return np.float16 if array.dtype == np.float16 else np.float32


def _booleans(value: ArrayLike, field: str) -> NDArray[np.bool_]:
    array = _array(value, field)
    if array.dtype != np.bool_:
        raise InvalidRequest(f"holds {array.dtype}; it must hold bool, where true = may attend", field=field)
    return array


def _array(value: ArrayLike, field: str) -> NDArray[Any]:
    with _named_field(field):
        return np.asarray(value)


def _duration(seconds: float | None, field: str) -> Duration | None:
    if seconds is None:
        return None
    duration = Duration()
    with _named_field(field):
        duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def _names(names: Iterable[str], option: str) -> Iterable[str]:
    """Return names; a string alone would be taken for one name a letter."""
    if isinstance(names, str):
        raise TypeError(f"{option} must be a list; write [{names!r}]")
    return names


def _choice(choices: Mapping[Any, Any], value: object) -> Any:
    if value not in choices:
        raise ValueError(f"is {value!r}; it must be one of {', '.join(str(choice) for choice in choices)}")
    return choices[value]


@contextmanager
def _named_field(field: str) -> Iterator[None]:
    """Raise the errors of a value's type, of NumPy and of protobuf as InvalidRequest of the field."""
    try:
        yield
    # PyTorch raises RuntimeError for a tensor that requires a gradient.
    except (AttributeError, IndexError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise InvalidRequest(str(error), field=field) from error
