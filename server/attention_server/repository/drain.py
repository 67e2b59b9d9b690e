"""The end of retired versions: wait for leases, forget memories, return freed bytes to the system."""

import ctypes
import threading
import time
from collections.abc import Callable

import structlog

from attention_server.contexts.store import MemoryStore
from attention_server.repository.registry import Registry, ServedVersion

log = structlog.get_logger()


class Drain:
    """Ends retired versions.

    Args:
        registry: counts the leases.
        memories: those of a version are forgotten with it.
        grace: seconds to wait for leases.
    """

    def __init__(self, registry: Registry, memories: MemoryStore, grace: float) -> None:
        self._registry = registry
        self._memories = memories
        self._grace = grace

    def start(self, retired: list[ServedVersion]) -> None:
        """End versions in a new thread."""
        if retired:
            threading.Thread(target=self.run, args=(retired,), name="drain", daemon=True).start()

    def run(self, retired: list[ServedVersion]) -> None:
        """Wait until versions have no leases or the grace has passed, and end them. Empties the list.

        A reference that stayed in the list would keep a version's sessions alive while the next is waited for.
        """
        deadline = time.monotonic() + self._grace
        while retired:
            self._end(retired.pop(), deadline)
        _trim()

    def _end(self, version: ServedVersion, deadline: float) -> None:
        model = version.model
        drained = self._registry.wait(version, max(0.0, deadline - time.monotonic()))
        self._memories.forget(model.name, model.version, model.digest)
        self._registry.forget(version)
        if drained:
            log.info("model unloaded", model=model.name, version=model.version)
        else:
            log.warning("model unloaded, though requests hold it", model=model.name, version=model.version)


def _libc_trim() -> Callable[[], object]:
    """Return glibc's `malloc_trim`; with another C library, a function that does nothing."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return lambda: None
    return lambda: trim(0)


_trim = _libc_trim()
