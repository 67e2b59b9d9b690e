"""Headers in nghttp2's form."""

import functools
from collections.abc import Sequence
from typing import Any

from attention_server.http2.library import NO_INDEX, ffi

Header = tuple[bytes, bytes]

# Headers with values that repeat; HPACK keeps these in its table.
INDEXED = frozenset({b":status", b"content-type", b"grpc-status", b"grpc-accept-encoding"})
PAIRS = ffi.typeof("nghttp2_nv[]")


class Headers:
    """Headers in nghttp2's form. nghttp2 copies the bytes at submission.

    Args:
        headers: names in lower case, and values.
    """

    __slots__ = ("_kept", "count", "pairs")

    def __init__(self, headers: Sequence[Header]) -> None:
        self._kept = headers  # `pairs` points into these bytes
        self.count = len(headers)
        self.pairs = ffi.new(
            PAIRS,
            [
                (_pointer(name), _pointer(value), len(name), len(value), 0)
                if name in INDEXED
                else (_pointer(name), ffi.from_buffer(value), len(name), len(value), NO_INDEX)
                for name, value in headers
            ],
        )


@functools.cache
def _pointer(word: bytes) -> Any:
    """Return a pointer to a name, or to a value that repeats. The cache keeps the bytes in place."""
    return ffi.from_buffer(word)
