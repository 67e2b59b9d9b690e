"""The data that an int8 version is measured on, converted to its model's inputs."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Manifest
from numpy.typing import NDArray
from tokenizers import Tokenizer

VECTORS = ("vectors", "memory_vectors", "value_vectors")
TEXTS = ("text", "memory_text")

Array = NDArray[Any]


class BadData(ValueError):
    """A row of the data is no valid input of the model."""


@dataclass(frozen=True)
class Example:
    """One sequence of the data: each part [1, length, width], or tokens [1, length]; None for absent parts."""

    query: Array | None = None
    key: Array | None = None
    value: Array | None = None
    tokens: Array | None = None
    memory_tokens: Array | None = None

    @property
    def positions(self) -> int:
        """T."""
        asking = self.query if self.tokens is None else self.tokens
        assert asking is not None
        return int(asking.shape[1])


def read_data(path: Path, folder: Path, manifest: Manifest) -> list[Example]:
    """Read the sequences to measure on.

    Args:
        path: `.npy`, float queries [N, T, D] or [T, D]; or JSON lines, a sequence each: `text` or `vectors` [T, D], and
            for attention to another sequence `memory_text` or `memory_vectors` [S, Dk]; `value_vectors` [S, Dv] for
            values that are not the keys. Further fields are ignored, so that training data can be used.
        folder: the version's folder, for its tokenizers.
        manifest: the version's manifest.

    Raises:
        BadData: a row is no valid input of the model; names the row.
        OSError: the file cannot be read.
    """
    reader = _RowReader(folder, manifest)
    rows = _array_rows(path) if path.suffix == ".npy" else _json_rows(path)
    examples = [reader.read(where, row) for where, row in rows]
    if not examples:
        raise BadData(f"{path} has no sequences")
    return examples


class _RowReader:
    """Converts rows of data to one model's inputs."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        text, first = manifest.text, manifest.layers[0]
        self._crosses = manifest.block == "cross_attention"
        self._query = first.query_dim
        self._key = first.key_dim or first.query_dim
        self._value = first.value_dim or self._key
        memory_file = text.memory_tokenizer.name or text.tokenizer.name
        self._words, self._memory_words = (
            _TextReader(folder / file, longest, allow_unknown=text.allow_unknown) if front.name else None
            for front, file, longest in (
                (text.front, text.tokenizer.name, text.max_tokens),
                (text.memory_front, memory_file, text.max_memory_tokens),
            )
        )

    def read(self, where: str, row: dict[str, Any]) -> Example:
        """Read a row.

        Raises:
            BadData: the row is no valid input of the model.
        """
        given = {name: row[name] for name in (*TEXTS, *VECTORS) if row.get(name) is not None}
        self._check_fields(where, given)
        vectors, key, value = (
            _vectors(f"{where}: {name}", given[name], width) if name in given else None
            for name, width in zip(VECTORS, (self._query, self._key, self._value), strict=True)
        )
        _check_lengths(where, key, value)
        tokens, memory_tokens = (
            words.read(f"{where}: {name}", given[name]) if words is not None and name in given else None
            for name, words in zip(TEXTS, (self._words, self._memory_words), strict=True)
        )
        return Example(vectors, key, value, tokens, memory_tokens)

    def _check_fields(self, where: str, given: dict[str, Any]) -> None:
        attends_to_another = bool(given.keys() & {"memory_text", "memory_vectors"})
        if ("text" in given) == ("vectors" in given):
            raise BadData(f"{where}: give either text or vectors; it has {', '.join(given) or 'neither'}")
        if given.keys() >= {"memory_text", "memory_vectors"} or (
            "value_vectors" in given and "memory_vectors" not in given
        ):
            raise BadData(f"{where}: give memory_text, or memory_vectors and value_vectors; it has {', '.join(given)}")
        for name, words in zip(TEXTS, (self._words, self._memory_words), strict=True):
            if name in given and words is None:
                raise BadData(f"{where}: the model reads no {name}; give {name.replace('text', 'vectors')}")
        if self._crosses and not attends_to_another:
            raise BadData(f"{where}: cross_attention attends to another sequence; give memory_text or memory_vectors")
        if "vectors" in given and not attends_to_another and self._query != self._key:
            raise BadData(f"{where}: keys are not as wide as queries; give memory_vectors")
        keys_given = "memory_vectors" in given or given.keys() == {"vectors"}
        if keys_given and "value_vectors" not in given and self._key != self._value:
            raise BadData(f"{where}: values are not as wide as keys; give memory_vectors and value_vectors")


class _TextReader:
    """A tokenizer with the model's limit of tokens; 0 is no limit."""

    def __init__(self, path: Path, longest: int, *, allow_unknown: bool) -> None:
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._longest = longest
        self._unknown = None if allow_unknown else json.loads(path.read_text())["model"].get("unk_token")

    def read(self, where: str, text: Any) -> Array:
        """Return the tokens, INT64 [1, T]."""
        if not isinstance(text, str):
            raise BadData(f"{where} must be a string, not {type(text).__name__}")
        encoding = self._tokenizer.encode(text)
        for token, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True):
            if token == self._unknown:
                raise BadData(f"{where}: {text[start:end]!r} is not in the vocabulary")
        if not encoding.ids or len(encoding.ids) > (self._longest or len(encoding.ids)):
            raise BadData(f"{where} has {len(encoding.ids)} tokens; it needs 1 to {self._longest or 'any number of'}")
        return np.array([encoding.ids], np.int64)


def _array_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        array = np.load(path, allow_pickle=False)
    except (EOFError, ValueError) as error:
        raise BadData(f"{path} is no .npy of numbers: {error}") from error
    sequences = array[None] if array.ndim == 2 else array
    if sequences.ndim != 3:
        raise BadData(f"{path} has the shape {list(array.shape)}; it must be [N, T, D] or [T, D]")
    for index, sequence in enumerate(sequences):
        yield f"{path}[{index}]", {"vectors": sequence}


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise BadData(f"{where} is no JSON: {error}") from error
            if not isinstance(row, dict):
                raise BadData(f"{where} must be an object with text or vectors, not {type(row).__name__}")
            yield where, row


def _vectors(where: str, given: Any, width: int) -> Array:
    """Return [1, length, width]."""
    try:
        with np.errstate(over="ignore"):  # infinite values are refused below
            array = np.asarray(given, np.float32)
    except (TypeError, ValueError) as error:
        raise BadData(f"{where} is no list of equally long vectors of numbers") from error
    if array.ndim != 2 or not len(array) or array.shape[1] != width:
        raise BadData(f"{where} has the shape {list(array.shape)}; it must be [1 or more, {width}]")
    if not np.isfinite(array).all():
        raise BadData(f"{where} has a number that is not finite, at {np.argwhere(~np.isfinite(array))[0].tolist()}")
    return array[None]


def _check_lengths(where: str, key: Array | None, value: Array | None) -> None:
    if key is not None and value is not None and key.shape[1] != value.shape[1]:
        raise BadData(f"{where}: there are {key.shape[1]} memory_vectors and {value.shape[1]} value_vectors")
