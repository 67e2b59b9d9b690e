"""The store of memories, within a budget of bytes."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from attention_server.contexts.memory import Memory
from attention_server.errors import NotFound, TooLarge


@dataclass(slots=True)
class MemoryState:
    """The memories kept at this moment, and counts of lookups and removals since the start.

    Attributes:
        budget, size: bytes allowed, and bytes used.
        entries: number of memories.
        hits, misses: lookups that found a memory, and that did not.
        evicted, expired: memories forgotten to make room, and for lack of use.
    """

    budget: int
    size: int = 0
    entries: int = 0
    hits: int = 0
    misses: int = 0
    evicted: int = 0
    expired: int = 0


class MemoryStore:
    """Memories within a budget of bytes; the least recently used is evicted first.

    Args:
        budget: bytes of all memories together.
        clock: `time.monotonic`.
    """

    def __init__(self, budget: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._budget = budget
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Memory] = OrderedDict()  # the least recently used first
        self._state = MemoryState(budget)

    def put(self, memory: Memory) -> None:
        """Keep a memory.

        Raises:
            TooLarge: the memory alone is over the budget.
        """
        if memory.size > self._budget:
            raise TooLarge(f"the memory has {memory.size} bytes; all together may have {self._budget}")
        with self._lock:
            known = self._kept.get(memory.id)
            if known is not None:  # perhaps of another caller: it is kept for the longer of both times
                memory.ttl = max(memory.ttl, known.ttl)
            self._forget(memory.id)
            self._sweep()
            while self._state.size + memory.size > self._budget:
                self._forget(next(iter(self._kept)))
                self._state.evicted += 1
            memory.expires = self._clock() + memory.ttl
            self._kept[memory.id] = memory
            self._state.size += memory.size

    def get(self, id_: str, model: str, version: int = 0, field: str = "memory", digest: str = "") -> Memory:
        """Return a memory and extend its time.

        Raises:
            NotFound: the memory is not kept, or belongs to a different model, version or digest.
        """
        with self._lock:
            self._sweep()
            memory = self._kept.get(id_)
            self._state.misses += 1  # until it is found
            if memory is None or memory.model != model:
                raise NotFound(f"model {model!r} keeps no memory {id_[:64]!r}; create it again", field=field)
            if version not in (0, memory.version):
                raise NotFound(
                    f"memory {id_!r} is of version {memory.version}, not {version}; create it again", field=field
                )
            if digest not in ("", memory.digest):
                raise NotFound(f"memory {id_!r} is of what version {version} was before; create it again", field=field)
            self._state.misses -= 1
            self._state.hits += 1
            memory.expires = self._clock() + memory.ttl
            self._kept.move_to_end(id_)
            return memory

    def of(self, model: str) -> list[Memory]:
        """Return a model's memories, the most recently used first."""
        with self._lock:
            self._sweep()
            return [memory for memory in reversed(self._kept.values()) if memory.model == model]

    def delete(self, id_: str, model: str) -> None:
        """Forget a memory. Requests that hold it finish.

        Raises:
            NotFound: the memory is not kept.
        """
        self.get(id_, model, field="id")
        with self._lock:
            self._forget(id_)

    def forget(self, model: str, version: int, digest: str) -> None:
        """Forget every memory of a version that is no longer served."""
        with self._lock:
            for memory in list(self._kept.values()):
                if (memory.model, memory.version, memory.digest) == (model, version, digest):
                    self._forget(memory.id)

    def state(self) -> MemoryState:
        """Return counts and sizes at this moment."""
        with self._lock:
            self._sweep()
            return replace(self._state, entries=len(self._kept))

    def seconds_left(self, memory: Memory) -> float:
        """Return the seconds until an unused memory is forgotten."""
        return max(0.0, memory.expires - self._clock())

    def _sweep(self) -> None:
        now = self._clock()
        for id_ in [id_ for id_, memory in self._kept.items() if memory.expires <= now]:
            self._forget(id_)
            self._state.expired += 1

    def _forget(self, id_: str) -> None:
        memory = self._kept.pop(id_, None)
        self._state.size -= memory.size if memory else 0
