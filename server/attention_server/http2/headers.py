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
        self.pairs = pairs = ffi.new(PAIRS, self.count)
        for i, (name, value) in enumerate(headers):
            pair = pairs[i]
            indexed = name in INDEXED
            pair.name, pair.namelen = _pointer(name), len(name)
            pair.value, pair.valuelen = _pointer(value) if indexed else ffi.from_buffer(value), len(value)
            pair.flags = 0 if indexed else NO_INDEX


@functools.cache
def _pointer(word: bytes) -> Any:
    """Return a pointer to a name, or to a value that repeats. The cache keeps the bytes in place."""
    return ffi.from_buffer(word)
