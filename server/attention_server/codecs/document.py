"""Strict access to a parsed JSON document: an unknown field or a wrong type is an error that names the field."""

import difflib
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import orjson
from attention_proto.duplicates import count
from attention_proto.stages import Option

from attention_server.codecs.number_lists import NumberList, converted, put_back, take_out
from attention_server.domain.messages import Ablation, Array, KeySpan, Sample
from attention_server.errors import InvalidRequest, TooLarge, join_path

LEAVES: dict[str, tuple[set[type], str]] = {
    "b": ({bool}, "true and false"),
    "i": ({int}, "integers"),
    "u": ({int}, "integers"),
    "f": ({int, float}, "numbers"),
}
Json = Mapping[str, Any]
SAMPLE_FIELDS = Sample._fields
SPAN_ENDS = ("begin", "end")
MAX_SEED = 2**64 - 1
# In a document, outside of long lists of numbers: lists and objects, of which an empty one takes about 70 bytes in
# memory, and values, which the parser reads before a further thread may run.
MAX_CONTAINERS = 1_000_000
MAX_VALUES = 2_000_000
LONG_TEXT = 128 * 1024  # bytes of a document whose long lists of numbers are read in pieces


def parse(body: bytes) -> object:
    """Parse JSON. In a long text, long nested lists of numbers of equal lengths become a `NumberList` each.

    Raises:
        TooLarge: outside of these the body has too many values, or too many lists and objects, each of which takes many
            times its two bytes.
        InvalidRequest: the body is not JSON; NaN and infinity are not JSON.
    """
    text, lists = take_out(body) if len(body) > LONG_TEXT else (body, {})
    containers = count(text, b"[") + count(text, b"{")
    if containers > MAX_CONTAINERS:
        raise TooLarge(
            f"the body has {containers} lists and objects; JSON may have {MAX_CONTAINERS}: send tensors as base64"
        )
    if len(text) > MAX_VALUES and count(text, b",") > MAX_VALUES:
        raise TooLarge(
            f"the body has over {MAX_VALUES} values outside of long lists of numbers, nested in equal lengths: "
            "send tensors as base64"
        )
    try:
        content = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from error
    return put_back(content, lists) if lists else content


def fields(value: object, path: str, known: tuple[str, ...]) -> Json:
    """Return an object after checking that all its fields are known.

    This function and those below raise InvalidRequest with the path of the field at fault.
    """
    if not isinstance(value, dict):
        raise InvalidRequest(f"must be an object, not {kind_of(value)}", field=path)
    for name in value:
        if name not in known:
            close = difflib.get_close_matches(name[:64], known, 1)  # which reads each character
            others = f"there is {', '.join(known)}" if known else "leave it out"
            hint = f"; did you mean {close[0]!r}?" if close else f"; {others}"
            raise InvalidRequest(f"there is no such field{hint}", field=join_path(path, name[:64]))
    return value


def typed(content: Json, name: str, kind: type, default: Any, path: str) -> Any:
    """Return a field of a type, or the default where it is absent or null."""
    value = content.get(name)
    if value is None:
        return default
    if kind is list and isinstance(value, NumberList):
        return value.to_list()
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        expected = {bool: "true or false", int: "an integer", str: "a string", list: "a list"}[kind]
        raise InvalidRequest(f"must be {expected}, not {kind_of(value)}", field=join_path(path, name))
    if isinstance(value, int) and not -(2**31) <= value < 2**31:
        raise InvalidRequest(f"{value} is out of range", field=join_path(path, name))
    return value


def choice(content: Json, name: str, choices: tuple[str, ...], default: str, path: str) -> Any:
    """Return a field that is one of several strings."""
    value = typed(content, name, str, default, path)
    if value not in choices:
        raise InvalidRequest(f"must be one of {', '.join(choices)}, not {value[:64]!r}", field=join_path(path, name))
    return value


def elements(content: Json, name: str, path: str) -> list[Any]:
    """Return a field that is a list; an absent field is an empty list."""
    return typed(content, name, list, [], path)  # type: ignore[no-any-return]


def numbers(content: Json, name: str, path: str) -> list[Any] | NumberList:
    """Return a field that is a list, for `nested`; an absent field is an empty list."""
    value = content.get(name)
    return value if isinstance(value, NumberList) else elements(content, name, path)


def each_typed(content: Json, name: str, kind: type, path: str) -> list[Any]:
    """Return a field that is a list with elements of one type."""
    values = elements(content, name, path)
    for i, value in enumerate(values):
        if value is None:
            raise InvalidRequest("must not be null", field=join_path(path, f"{name}[{i}]"))
    return [typed({f"{name}[{i}]": value}, f"{name}[{i}]", kind, None, path) for i, value in enumerate(values)]


def integers(content: Json, name: str, path: str, minimum: int = -(2**31)) -> tuple[int, ...]:
    """Return a field that is a list of integers."""
    values = each_typed(content, name, int, path)
    for i, value in enumerate(values):
        if value < minimum:
            least = "" if minimum < 0 else f", at least {minimum}"
            raise InvalidRequest(f"must be an integer{least}", field=join_path(path, f"{name}[{i}]"))
    return tuple(values)


def at_least_zero(value: int, field: str) -> int:
    """Return a number that is not negative."""
    if value < 0:
        raise InvalidRequest(f"must be 0 or above, not {value}", field=field)
    return value


def read_option(option: Option, content: Json, path: str) -> Any:
    """Return an option of an output, as `OutputSpec` has it."""
    name = option.name
    match option.kind:
        case "choice":
            return choice(content, name, option.choices, option.choices[0], path)
        case "integers":
            return integers(content, name, path, -(2**31) if option.minimum is None else option.minimum)
        case "integer":
            return at_least_zero(typed(content, name, int, 0, path), join_path(path, name))
        case "strings":
            return tuple(each_typed(content, name, str, path))
        case "string":
            return typed(content, name, str, "", path)
        case "sample" | "spans":
            read = read_sample if option.kind == "sample" else read_spans
            return read(content.get(name), join_path(path, name))


def read_spans(value: object, path: str) -> tuple[KeySpan, ...]:
    """Return the option `spans`: an object of a range for each name."""
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise InvalidRequest(f"must be an object of ranges by name, not {kind_of(value)}", field=path)
    return tuple([_read_span(name, each, join_path(path, name[:64])) for name, each in value.items()])


def _read_span(name: str, value: object, path: str) -> KeySpan:
    """Return a range, sent as `[begin, end]` or as an object."""
    if not isinstance(value, list):
        content = fields(value, path, KeySpan._fields[1:])
        begin, end = [at_least_zero(typed(content, each, int, 0, path), join_path(path, each)) for each in SPAN_ENDS]
        return KeySpan(name, begin, end, typed(content, "characters", bool, False, path))
    ends = integers({"range": value}, "range", path, minimum=0)
    if len(ends) != len(SPAN_ENDS):
        raise InvalidRequest(f"must be [begin, end], not {len(ends)} numbers", field=path)
    return KeySpan(name, ends[0], ends[1])


def read_sample(value: object, path: str) -> Sample | None:
    """Return the option `sample`; its numbers are rounded to float32, as those of a protobuf message are."""
    if value is None:
        return None
    content = fields(value, path, SAMPLE_FIELDS)
    seed = content.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED):
        raise InvalidRequest(f"must be an integer from 0 to {MAX_SEED}", field=join_path(path, "seed"))
    return Sample(
        temperature=_float32(content, "temperature", 1.0, path),
        top_k=at_least_zero(typed(content, "top_k", int, 0, path), join_path(path, "top_k")),
        top_p=_float32(content, "top_p", 1.0, path),
        seed=seed,
    )


def read_ablate(content: Json, path: str) -> tuple[Ablation, ...]:
    """Return the heads that a request switches off."""
    ablations = []
    for i, each in enumerate(elements(content, "ablate", path)):
        field = join_path(path, f"ablate[{i}]")
        own = fields(each, field, Ablation._fields)
        layers = tuple(each_typed(own, "layers", str, field))
        ablations.append(Ablation(layers, integers(own, "heads", field, minimum=0)))
    return tuple(ablations)


def float32(content: Json, name: str, path: str) -> float | None:
    """Return a number, rounded to float32 as one of a protobuf message is; None where it is absent."""
    return None if content.get(name) is None else _float32(content, name, 0.0, path)


def _float32(content: Json, name: str, default: float, path: str) -> float:
    value = content.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(f"must be a number, not {kind_of(value)}", field=join_path(path, name))
    with np.errstate(over="ignore"):  # infinity is refused where the sample is checked
        return float(np.float32(value))


def nested(value: list[Any] | NumberList, dtype: "np.dtype[Any]", field: str) -> Array:
    """Convert nested lists of numbers to an array."""
    kinds, wanted = LEAVES[dtype.kind]
    if not (value.types if isinstance(value, NumberList) else _leaf_types(value)) <= kinds:
        raise InvalidRequest(f"must hold {wanted} only, in nested lists of equal lengths", field=field)
    try:
        with np.errstate(over="ignore"):  # a number out of range becomes infinite, and validation names its position
            if isinstance(value, NumberList):
                return value.to_array(dtype)
            return converted(np.asarray(value, np.float64 if float in kinds else None), dtype)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest("must be nested lists of equal lengths, of numbers that fit", field=field) from error


def reshape(array: Array, shape: tuple[int, ...], field: str) -> Array:
    """Return an array in a shape that its elements fill."""
    try:
        if min(shape, default=0) < 0:
            raise ValueError  # noqa: TRY301 # NumPy would infer a length of -1
        return array.reshape(shape)
    except ValueError as error:
        raise InvalidRequest(f"has shape {list(shape)}, but {array.size} values", field=field) from error


def _leaf_types(value: list[Any]) -> set[type]:
    """Return the types of all elements: NumPy converts true to 1 and "1" to 1.0 silently."""
    types = set(map(type, value))
    while list in types:
        value = list(chain.from_iterable(each for each in value if type(each) is list))
        types = (types - {list}) | set(map(type, value))
    return types


def kind_of(value: object) -> str:
    """Return the JSON type of a value in words, for an error message."""
    kinds: dict[type, str] = {
        dict: "an object",
        list: "a list",
        NumberList: "a list",
        str: "a string",
        bool: "true or false",
        type(None): "null",
    }
    return kinds.get(type(value), "a number")
