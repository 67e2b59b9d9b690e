"""Long lists of numbers in JSON text, read and written in pieces.

The parser holds the interpreter's lock until a document ends, and makes an object of 24 bytes for each number. So the
lists that are most of a long document are taken out of its text first, and become arrays piece by piece: between two
pieces further threads have their turn. The lists taken out are nested in equal lengths, without strings; any text that
is not plainly such a list stays in the document, where the parser reads or refuses it. Long arrays of an answer are
likewise written piece by piece and put into the text of the rest.
"""

import math
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from attention_proto.duplicates import count

from attention_server.domain.messages import Array

LONG = 4 * 1024  # bytes of text: shorter lists are not taken out
PIECE = 64 * 1024  # bytes that are parsed at once, in about a millisecond
MAX_QUOTES = 200_000  # in a text with strings that are skipped one by one
MAX_DEPTH = 8  # of nested lists
TYPES = {int, float, bool}
LONG_ARRAY = 8 * 1024  # bytes of an array that is written in pieces
PIECE_OF_ARRAY = 64 * 1024  # bytes of an array that are written at once, in about a millisecond

OTHER = bytes(sorted(set(range(256)) - set(b"[],")))
SPACES = b" \t\r\n"
WITHOUT_BRACKETS = bytes.maketrans(b"[]", b"  ")
VALUES = bytes([byte if byte in b"[]," else ord("d") for byte in range(256)])  # each byte of a value becomes a d


@dataclass(frozen=True, slots=True)
class NumberList:
    """Nested lists of equal lengths, in a parsed document in place of lists of Python.

    Attributes:
        blocks: the values in order: int64, uint64, float64 or bool; objects where a block has numbers and truth values.
        types: of the values, as made by the parser.
        shape: of the lists.
    """

    blocks: tuple[Array, ...]
    types: frozenset[type]
    shape: tuple[int, ...]

    def to_array(self, dtype: "np.dtype[Any]") -> Array:
        """Return an array of a type. A float out of its range becomes infinite.

        Raises:
            OverflowError: an integer does not fit.
        """
        array = np.empty(math.prod(self.shape), dtype)
        at = 0
        for block in self.blocks:
            array[at : at + len(block)] = converted(block, dtype)
            at += len(block)
        return array.reshape(self.shape)

    def to_list(self) -> list[Any]:
        """Return lists of Python."""
        values: list[Any] = []
        for block in self.blocks:
            values += block.tolist()
        for length in reversed(self.shape[1:]):
            values = [values[at : at + length] for at in range(0, len(values), length)]
        return values


def converted(array: Array, dtype: "np.dtype[Any]") -> Array:
    """Return an array of another type, which keeps every integer. A float out of its range becomes infinite.

    Raises:
        OverflowError: an integer does not fit.
    """
    if dtype.kind in "iu" and array.size:
        most = np.iinfo(dtype)
        if array.dtype.kind not in "iu" or array.min() < most.min or array.max() > most.max:
            raise OverflowError
    return array.astype(dtype)


def take_out(text: bytes) -> tuple[bytes, dict[str, NumberList]]:
    """Take long lists out of a JSON text.

    Returns:
        The text with a string instead of each list, and the lists by these strings, which no sender can guess.
    """
    if count(text, b'"') > MAX_QUOTES:
        return text, {}
    parts: list[bytes] = []
    lists: dict[str, NumberList] = {}
    rest = 0
    prefix = secrets.token_hex(16)
    for begin, end in _without_strings(text):
        at = text.find(b"[", begin, end)
        while at >= 0 and end - at >= LONG:
            close = _end_of_list(text, at, end)
            if not close:
                break
            if close - at >= LONG and (found := _read(text, at, close)):
                name = f"{prefix}-{len(lists)}"
                lists[name] = found
                parts += [text[rest:at], b'"', name.encode(), b'"']
                rest = close
            at = text.find(b"[", close, end)
    return b"".join((*parts, text[rest:])) if lists else text, lists


def put_back(content: object, lists: dict[str, NumberList]) -> object:
    """Put lists in place of the strings in a parsed document, which is changed; return it."""
    if isinstance(content, str):
        return lists.get(content, content)
    waiting: list[object] = [content]
    while waiting:
        each = waiting.pop()
        items: Any = each.items() if isinstance(each, dict) else enumerate(each) if isinstance(each, list) else ()
        for key, value in items:
            if isinstance(value, dict | list):
                waiting.append(value)
            elif isinstance(value, str) and value in lists:
                each[key] = lists[value]  # type: ignore[index] # a dict or list
    return content


class LongArray:
    """An array in a document that `write` is given."""

    __slots__ = ("array",)

    def __init__(self, array: Array) -> None:
        self.array = array


def for_writing(array: Array) -> Array | LongArray:
    """Return the form of an array in a document that `write` is given."""
    array = np.ascontiguousarray(array)
    return array if array.nbytes < LONG_ARRAY else LongArray(array)


def write(document: object) -> bytes:
    """Return the JSON text of a document with arrays."""
    prefix = secrets.token_hex(16)
    long: list[Array] = []

    def take(value: object) -> str:
        if not isinstance(value, LongArray):
            raise TypeError
        long.append(value.array)
        return f"{prefix}-{len(long) - 1}"

    text = orjson.dumps(document, take, orjson.OPT_SERIALIZE_NUMPY)
    if not long:
        return text
    parts: list[bytes] = []
    rest = 0
    for i, array in enumerate(long):
        name = f'"{prefix}-{i}"'.encode()
        at = text.index(name, rest)
        parts += [text[rest:at], *_written(array)]
        rest = at + len(name)
    return b"".join((*parts, text[rest:]))


def _written(array: Array) -> Iterator[bytes]:
    """Yield the text of an array in pieces."""
    if array.nbytes <= PIECE_OF_ARRAY:
        yield orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)
        return
    rows = max(1, PIECE_OF_ARRAY * len(array) // array.nbytes)
    for at in range(0, len(array), rows):
        yield b"," if at else b"["
        if rows == 1 and array.ndim > 1:
            yield from _written(array[at])
        else:
            yield orjson.dumps(array[at : at + rows], option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
    yield b"]"


def _without_strings(text: bytes) -> Iterator[tuple[int, int]]:
    """Yield begin and end of the long stretches outside of strings."""
    begin = 0
    while begin < len(text):
        quote = text.find(b'"', begin)
        end = len(text) if quote < 0 else quote
        if end - begin >= LONG:
            yield begin, end
        begin = len(text) if quote < 0 else _end_of_string(text, quote + 1)


def _end_of_string(text: bytes, begin: int) -> int:
    """Return the position behind the quote that ends a string."""
    quote = text.find(b'"', begin)
    while quote >= 0:
        slashes = quote
        while slashes > begin and text[slashes - 1] == ord("\\"):
            slashes -= 1
        if (quote - slashes) % 2 == 0:
            return quote + 1
        begin = quote + 1
        quote = text.find(b'"', begin)
    return len(text)


def _end_of_list(text: bytes, begin: int, end: int) -> int:
    """Return the position behind the bracket that closes the one at `begin`; 0 where there is none, or it is deep."""
    depth = 1
    for at in range(begin + 1, end, PIECE):
        left = text[at : min(at + PIECE, end)].translate(None, OTHER).translate(None, b",")
        for _ in range(MAX_DEPTH):
            left = left.replace(b"[]", b"")
        closes = left.count(b"]")
        if left[:closes].count(b"]") != closes:
            return 0
        if closes >= depth:
            return _close_of(text, at, end, depth)
        depth += len(left) - 2 * closes
        if depth > MAX_DEPTH:
            return 0
    return 0


def _close_of(text: bytes, at: int, end: int, depth: int) -> int:
    """Return the position behind the bracket in a piece of text that ends as many lists as are open."""
    piece = np.frombuffer(text, np.uint8, min(PIECE, end - at), at)
    steps = (piece == ord("[")).astype(np.int32) - (piece == ord("]"))
    ends = np.flatnonzero((depth + np.cumsum(steps) == 0) & (steps < 0))
    return at + int(ends[0]) + 1 if len(ends) else 0


def _read(text: bytes, begin: int, end: int) -> NumberList | None:
    """Return the lists in a part of the text; None for lists of unequal lengths, or with further types of values."""
    blocks: list[Array] = []
    types: set[type] = set()
    skeleton = []  # its brackets and commas
    for piece in _pieces(text, begin, end):
        dense = piece.translate(VALUES, SPACES)
        if b"d[" in dense or b"]d" in dense:
            return None
        skeleton.append(piece.translate(None, OTHER))
        try:
            values = orjson.loads(b"[" + piece.translate(WITHOUT_BRACKETS) + b"]")
        except orjson.JSONDecodeError:
            return None
        if not values:
            return None
        kinds = set(map(type, values))
        if not kinds <= TYPES:
            return None
        types |= kinds
        blocks.append(_block(values, kinds))
    shape = _shape(b",".join(skeleton))
    if shape is None or math.prod(shape) != sum(map(len, blocks)):
        return None
    return NumberList(tuple(blocks), frozenset(types), shape)


def _pieces(text: bytes, begin: int, end: int) -> Iterator[bytes]:
    """Yield a part of the text in pieces without the commas in between."""
    while end - begin > PIECE:
        comma = text.rfind(b",", begin, begin + PIECE)
        comma = text.find(b",", begin, end) if comma < 0 else comma
        if comma < 0:
            break
        yield text[begin:comma]
        begin = comma + 1
    yield text[begin:end]


def _block(values: list[Any], kinds: set[type]) -> Array:
    if kinds <= {int}:
        try:
            return np.array(values, np.int64)
        except OverflowError:
            return np.array(values)  # uint64, or objects
    return np.array(values, np.float64 if kinds <= {int, float} else np.bool_ if kinds == {bool} else object)


def _shape(skeleton: bytes) -> tuple[int, ...] | None:
    """Return the shape of lists of equal lengths from their brackets and commas; None for lists of unequal lengths."""
    depth = len(skeleton[:MAX_DEPTH]) - len(skeleton[:MAX_DEPTH].lstrip(b"["))
    unit = skeleton[depth - 1 : skeleton.find(b"]") + 1]
    shape = [len(unit) - 1]  # one value more than commas
    if unit != b"[" + b"," * (len(unit) - 2) + b"]":
        return None
    for begin in range(depth - 2, -1, -1):
        end = skeleton.find(unit + b"]", begin + 1)
        count_, rest = divmod(end + len(unit) - begin, len(unit) + 1)
        if end < 0 or rest:
            return None
        unit = b"[" + (unit + b",") * (count_ - 1) + unit + b"]"
        shape.append(count_)
        if skeleton[begin : begin + len(unit)] != unit:
            return None
    return tuple(reversed(shape)) if skeleton == unit else None
