"""A kept memory: projected keys and values under an id."""

import hashlib
import secrets
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attention_server.domain.messages import Array, Tokens
from attention_server.errors import InvalidRequest

Vectors = NDArray[np.float32]

# What a memory takes beside its tensors, as measured of a thousand small ones: its objects, and those of each token.
HANDLE_BYTES = 1024
TOKEN_BYTES = 256


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """One projected key and value sequence.

    Attributes:
        id: 32 hexadecimal digits; unique among the memories of one caller. Empty until the store has made one.
        model, version: the model that projected it.
        tensors: by the names that graphs take, each [1, S, width], such as k and v; float32 or float16.
        tokens: of its text; None for a memory made of vectors.
        ttl: seconds to keep it after its last use.
        digest: of the manifest of that version; it changes when the files of a version are replaced.
        owner: name of the caller; empty for the callers without credentials.
        content: hash of everything that the tensors were made of.
        pinned: whether it is never evicted.
        max_storage_error: largest absolute difference between a kept number and the projected one.
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
    max_storage_error: float = 0.0

    @property
    def source(self) -> tuple[str, int, str]:
        """The model's name, its version and the digest of its files."""
        return self.model, self.version, self.digest

    @property
    def length(self) -> int:
        """S."""
        return int(next(iter(self.tensors.values())).shape[1])

    @property
    def names(self) -> frozenset[str]:
        """The names of its tensors."""
        return frozenset(self.tensors)

    @property
    def data_type(self) -> str:
        """The format in which the numbers are kept."""
        return "FP16" if next(iter(self.tensors.values())).dtype == np.float16 else "FP32"

    @property
    def tensor_parts(self) -> dict[Hashable, int]:
        """The bytes of each of its buffers by a key of the buffer; memories that share a buffer have an equal key."""
        return {id(each): each.nbytes for each in map(_buffer, self.tensors.values())}

    @property
    def parts(self) -> dict[Hashable, int]:
        """The bytes of everything that it keeps, by part: its buffers, its tokens and its own objects."""
        tokens = {} if self.tokens is None else {id(self.tokens): TOKEN_BYTES * len(self.tokens.ids)}
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
    """Return 128 bits of the SHA-256 of what a memory is made of. No caller sees it."""
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
    with np.errstate(over="ignore"):
        half = {id(each): each.astype(np.float16) for each in tensors.values()}
    for each in tensors.values():
        if not np.isfinite(half[id(each)]).all():
            most = np.finfo(np.float16).max
            raise InvalidRequest(
                f"keys and values reach {np.abs(each).max():g}, and FP16 ends at {most:g}; keep them as FP32",
                field="data_type",
            )
    error = max(float(np.abs(half[id(each)].astype(np.float32) - each).max()) for each in tensors.values())
    return {name: half[id(each)] for name, each in tensors.items()}, error


def _buffer(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array whose buffer an array is a view of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array
