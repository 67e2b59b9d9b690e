"""A kept memory: projected keys and values under an id."""

import hashlib
import secrets
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attention_server.contexts.past import Past, as_half
from attention_server.domain.messages import Array, Tokens

Vectors = NDArray[np.float32]

# Bytes of a memory beside its tensors, measured on a thousand small memories: objects, and those of each token.
HANDLE_BYTES = 1024
TOKEN_BYTES = 256
SHOWN_BYTES = 64  # of a token of a prefix, which is kept as it is shown alone


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """One projected key and value sequence.

    Attributes:
        id: 32 hexadecimal digits; unique among the memories of one caller. Empty until the store has made one.
        model, version: the model that projected it.
        tensors: by the names that graphs take, each [1, S, width], such as k and v; float32 or float16.
        tokens: of the text that the tensors are of; None for vectors, and for a prefix alone.
        ttl: seconds to keep it after its last use.
        digest: of the manifest of that version; it changes when the files of a version are replaced.
        owner: name of the caller; empty for the callers without credentials.
        content: hash of everything that the tensors were made of.
        pinned: whether it is never evicted.
        storage_error: largest absolute difference between a number of the tensors and the projected one.
        past: the prefix of a decoder; None for none.
        truncated: the number of tokens of its text that were dropped.
    """

    id: str
    model: str
    version: int
    tensors: Mapping[str, NDArray[Any]]
    tokens: Tokens | None
    ttl: float
    digest: str = ""
    owner: str = ""
    content: bytes = field(default=b"", repr=False)
    pinned: bool = False
    storage_error: float = 0.0
    past: Past | None = None
    truncated: int = 0

    @property
    def source(self) -> tuple[str, int, str]:
        """The model's name, its version and the digest of its files."""
        return self.model, self.version, self.digest

    @property
    def length(self) -> int:
        """The number of positions of both."""
        return self.source_length + self.prefix_length

    @property
    def source_length(self) -> int:
        """The number of keys that are kept of another sequence."""
        return int(next(iter(self.tensors.values())).shape[1]) if self.tensors else 0

    @property
    def prefix_length(self) -> int:
        """The number of positions of the prefix."""
        return self.past.length if self.past is not None else 0

    @property
    def shown(self) -> tuple[str, ...]:
        """The tokens of the source and of the prefix; empty for a memory made of vectors."""
        of_source = self.tokens.shown if self.tokens is not None else ()
        return of_source + (self.past.tokens if self.past is not None else ())

    @property
    def names(self) -> frozenset[str]:
        """The names of its tensors."""
        return frozenset(self.tensors)

    @property
    def data_type(self) -> str:
        """The format in which the numbers are kept."""
        kept = self.past.data_type if self.past is not None else next(iter(self.tensors.values())).dtype
        return "FP16" if kept == np.float16 else "FP32"

    @property
    def max_storage_error(self) -> float:
        """The largest absolute difference between a kept number and the projected one."""
        return max([self.storage_error, *([] if self.past is None else [each.error for each in self.past.blocks])])

    @property
    def tensor_parts(self) -> dict[Hashable, int]:
        """The bytes of each of its buffers by a key of the buffer; memories that share a buffer have an equal key."""
        blocks = () if self.past is None else self.past.blocks
        of_blocks: dict[Hashable, int] = {id(each): each.size for each in blocks}
        return of_blocks | {id(each): each.nbytes for each in map(_buffer, self.tensors.values())}

    @property
    def parts(self) -> dict[Hashable, int]:
        """The bytes of everything that it keeps, by part: its buffers, its tokens and its own objects."""
        blocks = () if self.past is None else self.past.blocks
        tokens: dict[Hashable, int] = {id(each.tokens): SHOWN_BYTES * each.capacity for each in blocks}
        if self.tokens is not None:
            tokens[id(self.tokens)] = TOKEN_BYTES * len(self.tokens.ids)
        return self.tensor_parts | tokens | {id(self): HANDLE_BYTES}

    @property
    def size(self) -> int:
        """Bytes of its tensors, of which several may be one array."""
        return sum(self.tensor_parts.values())

    def vectors(self) -> dict[str, Vectors]:
        """Return its tensors as float32, by name; an array under two names is cast once."""
        cast = {id(each): each.astype(np.float32, copy=False) for each in self.tensors.values()}
        return {name: cast[id(each)] for name, each in self.tensors.items()}


def new_id() -> str:
    """Return 128 random bits as hexadecimal digits."""
    return secrets.token_hex(16)


def content_hash(model: str, version: int, parts: list[Array | str | None]) -> bytes:
    """Return 128 bits of the SHA-256 of a memory's content. No caller sees it."""
    digest = hashlib.sha256(f"{model}/{version}".encode())
    for part in parts:
        if isinstance(part, str):
            digest.update(b"text" + part.encode())
        elif part is not None:
            digest.update(f"{part.dtype}{part.shape}".encode() + part.tobytes())
        digest.update(b"\0")
    return digest.digest()[:16]


def stored(tensors: Mapping[str, Vectors], data_type: str) -> tuple[dict[str, NDArray[Any]], float]:
    """Return tensors in the format in which they are kept, FP32 or FP16, and the largest absolute error of a number.

    Raises:
        InvalidRequest: a number is beyond the range of FP16.
    """
    if data_type == "FP32":
        return dict(tensors), 0.0
    half = {id(each): as_half(each) for each in tensors.values()}
    error = max((error for _, error in half.values()), default=0.0)
    return {name: half[id(each)][0] for name, each in tensors.items()}, error


def _buffer(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array that owns an array's buffer."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array
