"""A kept memory: projected keys and values under an id."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attention_server.domain.messages import Array, Tokens

Vectors = NDArray[np.float32]


@dataclass(slots=True)
class Memory:
    """One projected key and value sequence.

    Attributes:
        id: hash of the content and of the model's version; equal for equal memories.
        model, version: the model that projected it.
        digest: of the manifest of that version; it changes when the files of a version are replaced.
        tensors: by the names that graphs take, each [1, S, width], such as k and v.
        tokens: of its text; None for a memory made of vectors.
        ttl: seconds to keep it after its last use.
        expires: the time at which it is forgotten unless used again, on the clock of the store.
    """

    id: str
    model: str
    version: int
    tensors: Mapping[str, Vectors]
    tokens: Tokens | None
    ttl: float
    digest: str = ""
    expires: float = 0.0

    @property
    def length(self) -> int:
        """S."""
        return int(next(iter(self.tensors.values())).shape[1])

    @property
    def names(self) -> frozenset[str]:
        """The names of its tensors."""
        return frozenset(self.tensors)

    @property
    def size(self) -> int:
        """Bytes of its tensors, of which several may be one array."""
        return sum({id(each): each.nbytes for each in self.tensors.values()}.values())


def memory_id(model: str, version: int, parts: list[Array | str | None]) -> str:
    """Return 128 bits of the SHA-256 of a memory's content."""
    digest = hashlib.sha256(f"{model}/{version}".encode())
    for part in parts:
        if isinstance(part, str):
            digest.update(b"text" + part.encode())
        elif part is not None:
            digest.update(f"{part.dtype}{part.shape}".encode() + part.tobytes())
        digest.update(b"\0")
    return digest.hexdigest()[:32]
