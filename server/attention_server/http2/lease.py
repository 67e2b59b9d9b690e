"""The account of bytes, as this package sees it: each call and each connection holds a lease."""

from collections.abc import Callable
from typing import Any, Protocol

COPIES = 2  # of each received byte: `MessageReader` has room ahead, and a parsed message stands beside its bytes
CONNECTION_BYTES = 64 * 1024  # that a connection takes, its session and buffers included
CALL_BYTES = 8 * 1024  # that a call takes beside its headers


class Lease(Protocol):
    """Bytes that a call or connection holds."""

    def grow(self, count: int, /) -> None:
        """Hold more; an exception refuses them, and becomes that of `Call.read`."""

    def add(self, count: int, /) -> None:
        """Hold more in any case."""

    def shrink(self, count: int, /) -> None:
        """Hold fewer."""

    def release(self) -> None:
        """Hold none any more, once every further user of the lease has released it."""


OpenLease = Callable[[str, int], Any]
"""Returns a lease of a peer's address that holds so many bytes in any case: a `Lease`, of the type that the calls'
receiver knows."""
