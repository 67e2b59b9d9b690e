"""The reader of data files: JSON lines, each a sequence with its labels.

    {"text": "a good film", "label": "positive"}
    {"tokens": ["Tater", "sleeps"], "labels": ["cat", "verb"]}
    {"vectors": [[0.1, 0.7], [0.3, 0.2]], "label": {"shape": "round", "size": "small"}}

`label` is for the whole sequence, `labels` has one for each position; both may be objects of several by name.
Cross-attention has a second sequence in each row: `memory_text`, `memory_tokens` or `memory_vectors`. Further fields
are ignored.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attention_export.own_data.vocabulary import split_words

UNNAMED = "label"  # the name of the only label
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
INPUT_OF_HEAD = "output"  # not available as a label name: names in a graph are unique
MEMORY = "memory_"
LARGEST = float(np.finfo(np.float32).max)

Words = tuple[str, ...]
Vectors = NDArray[np.float32]


class DataError(ValueError):
    """A data file is not usable; the message has the line, the field and a valid alternative."""


@dataclass(frozen=True)
class Row:
    """One sequence and its labels.

    Attributes:
        line: the line number, from 1.
        sequence: T words, or vectors (T, D).
        memory: S words, or vectors (S, Dk); None for blocks without a memory.
        labels: name -> one label, or T labels.
    """

    line: int
    sequence: Words | Vectors
    memory: Words | Vectors | None
    labels: Mapping[str, Words]


@dataclass(frozen=True)
class Data:
    """A file's content; all rows have the same kind.

    Attributes:
        path: the file.
        digest: the SHA-256 of the file's bytes.
        rows: the rows, at least one.
        of_words: whether sequences are words rather than vectors.
        tagged: whether each position has a label, rather than the whole sequence.
        classes: label name -> the distinct labels, sorted; at least two.
    """

    path: Path
    digest: str
    rows: Sequence[Row]
    of_words: bool
    tagged: bool
    classes: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Line:
    """The location of a line, for error messages."""

    path: Path
    number: int

    def error(self, field: str, message: str) -> DataError:
        """Return an error that begins with the location and the field."""
        return DataError(f"{self.path}, line {self.number}: {field} {message}")


def read_data(path: Path, *, with_memory: bool) -> Data:
    """Read and check a file. Empty lines are ignored.

    Args:
        path: the file.
        with_memory: whether each row must have a second sequence; otherwise no row may.

    Raises:
        DataError: a row is not usable, or rows differ in kind.
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    rows, tagged = [], set()
    for number, text in enumerate(content.split(b"\n"), 1):
        if text.strip():
            line = Line(path, number)
            fields = _parse(line, text)
            rows.append(_row(line, fields, with_memory=with_memory))
            tagged.add("labels" in fields)
            if len(tagged) > 1:
                raise line.error("label", "is in some rows and labels in others; use the same in all")
            _check_alike(line, rows[0], rows[-1])
    if not rows:
        raise DataError(f"{path}: has no rows; write one JSON object a line")
    digest = hashlib.sha256(content).hexdigest()
    return Data(path, digest, rows, isinstance(rows[0].sequence, tuple), tagged.pop(), _classes(path, rows))


def _parse(line: Line, text: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise line.error("the line", f"is no JSON ({error}); write one object a line, in UTF-8") from error
    if not isinstance(fields, dict):
        raise line.error("the line", f'is {_kind(fields)}; write an object, such as {{"text": "..", "label": ".."}}')
    return fields


def _row(line: Line, fields: Mapping[str, Any], *, with_memory: bool) -> Row:
    sequence = _sequence(line, fields, "")
    memory = None
    if with_memory:
        memory = _sequence(line, fields, MEMORY)
        if isinstance(memory, tuple) != isinstance(sequence, tuple):
            raise line.error("the memory", "is of another kind than the sequence; use words for both, or vectors")
    elif given := [name for name in _sources(MEMORY) if name in fields]:
        raise line.error(given[0], "is for cross_attention; leave it out, or train that block")
    return Row(line.number, sequence, memory, _labels(line, fields, len(sequence)))


def _check_alike(line: Line, first: Row, row: Row) -> None:
    """Check that a row has the kind, width and label names of the first row."""
    for what, a, b in (("the sequence", first.sequence, row.sequence), ("the memory", first.memory, row.memory)):
        if isinstance(a, tuple) != isinstance(b, tuple):
            raise line.error(what, f"is of another kind than in line {first.line}; use words in all rows, or vectors")
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.shape[1] != b.shape[1]:
            raise line.error(what, f"has vectors of {b.shape[1]} numbers where line {first.line} has {a.shape[1]}")
    if first.labels.keys() != row.labels.keys():
        here, there = (", ".join(sorted(each.labels)) for each in (row, first))
        raise line.error("label", f"names {here} where line {first.line} names {there}; use the same names in all rows")


def _classes(path: Path, rows: Sequence[Row]) -> dict[str, list[str]]:
    classes = {name: sorted({label for row in rows for label in row.labels[name]}) for name in rows[0].labels}
    for name, labels in classes.items():
        if len(labels) < 2:
            raise DataError(f"{path}: {name} is {labels[0]!r} everywhere; there must be at least two classes to learn")
    return classes


# --- sequences -------------------------------------------------------------------------------------------------------


def _sources(prefix: str) -> list[str]:
    return [f"{prefix}{name}" for name in READERS]


def _sequence(line: Line, fields: Mapping[str, Any], prefix: str) -> Words | Vectors:
    given = [name for name in _sources(prefix) if name in fields]
    if len(given) != 1:
        first, *others = given or _sources(prefix)
        problem = f"comes with {' and '.join(others)}" if given else f"is missing, and so is {' and '.join(others)}"
        raise line.error(first, f"{problem}; give one of them")
    name, value = given[0], fields[given[0]]
    return READERS[name.removeprefix(prefix)](line, name, value)


def _text(line: Line, field: str, value: Any) -> Words:
    if not isinstance(value, str):
        raise line.error(field, f"is {_kind(value)}; write a string")
    if not (words := split_words(value)):
        raise line.error(field, "has no words in it; write at least one, or leave the row out")
    return words


def _tokens(line: Line, field: str, value: Any) -> Words:
    if not isinstance(value, list) or not value:
        raise line.error(field, f"is {_kind(value)}; write a list of words, at least one")
    for index, token in enumerate(value):
        if not isinstance(token, str) or len(split_words(token)) != 1:
            shown = repr(token) if isinstance(token, str) else _kind(token)
            raise line.error(f"{field}[{index}]", f"is {shown}; write one word, a string without spaces")
    return tuple(split_words(token)[0] for token in value)


def _vectors(line: Line, field: str, value: Any) -> Vectors:
    if not isinstance(value, list) or not value:
        raise line.error(field, f"is {_kind(value)}; write a list of vectors, at least one")
    for index, vector in enumerate(value):
        where = f"{field}[{index}]"
        if not isinstance(vector, list) or not vector:
            raise line.error(where, f"is {_kind(vector)}; write a list of numbers, at least one")
        if wrong := [x for x in vector if type(x) not in (int, float)]:
            raise line.error(where, f"has {_kind(wrong[0])} in it; write numbers only")
        if len(vector) != len(value[0]):
            raise line.error(where, f"has {len(vector)} numbers where {field}[0] has {len(value[0])}; make them equal")
        if wrong := [x for x in vector if not abs(x) <= LARGEST]:  # NaN is not <= anything
            raise line.error(where, f"has {wrong[0]!r:.20} in it; write finite numbers that a 32-bit float can hold")
    return np.array(value, np.float32)


READERS: dict[str, Callable[[Line, str, Any], Words | Vectors]] = {
    "text": _text,
    "tokens": _tokens,
    "vectors": _vectors,
}


# --- labels ----------------------------------------------------------------------------------------------------------


def _labels(line: Line, fields: Mapping[str, Any], length: int) -> dict[str, Words]:
    given = [name for name in ("label", "labels") if name in fields]
    if len(given) != 1:
        problem = "comes with labels" if given else "is missing"
        raise line.error("label", f"{problem}; give label for the whole sequence, or labels, one for each position")
    field = given[0]
    read = _one if field == "label" else _one_each
    if not isinstance(fields[field], dict):
        return {UNNAMED: read(line, field, fields[field], length)}
    if not fields[field]:
        raise line.error(field, "is an empty object; name at least one label")
    for name in fields[field]:
        if not NAME.fullmatch(name) or name == INPUT_OF_HEAD:
            raise line.error(field, f"has the name {name!r}; use a letter, then letters, digits, _ or -, not 'output'")
    return {name: read(line, f"{field}.{name}", value, length) for name, value in sorted(fields[field].items())}


def _one(line: Line, field: str, value: Any, _: int) -> Words:
    if not isinstance(value, str) or not value:
        raise line.error(field, f"is {_kind(value)}; write a string, or an object of strings by name")
    return (value,)


def _one_each(line: Line, field: str, value: Any, length: int) -> Words:
    if not isinstance(value, list):
        raise line.error(field, f"is {_kind(value)}; write a list with a label for each position")
    for index, label in enumerate(value):
        if not isinstance(label, str) or not label:
            raise line.error(f"{field}[{index}]", f"is {_kind(label)}; write a string")
    if len(value) != length:
        raise line.error(field, f"has {len(value)} labels for a sequence of {length}; give one for each position")
    return tuple(value)


def _kind(value: Any) -> str:
    """Return a JSON value's type in words."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if not value and isinstance(value, (str, list, dict)):
        return "empty"
    names = {str: "a string", list: "a list", dict: "an object", int: "a number", float: "a number"}
    return names[type(value)]
