"""The memories of one caller, with the bytes of their parts: a part that memories share is counted once."""

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from attention_server.contexts.memory import Memory


@dataclass(slots=True)
class Part:
    """A buffer, or another object that memories keep.

    Attributes:
        bytes: its size.
        memories, pinned: number of memories that keep it, and of pinned ones.
    """

    bytes: int
    memories: int = 0
    pinned: int = 0


@dataclass(slots=True, eq=False)
class Entry:
    """A memory in the store.

    Attributes:
        memory: the memory.
        parts: bytes of its parts when it was put into the store.
        ttl: seconds to keep it after its last use.
        pinned: whether it is never evicted.
        expires: the time at which it is forgotten unless used again, on the clock of the store.
        holds: number of lookups of requests that have not ended.
        is_listed: whether it can be looked up; a deleted memory stays while requests hold it.
    """

    memory: Memory
    parts: Mapping[Hashable, int]
    ttl: float
    pinned: bool
    expires: float = 0.0
    holds: int = 0
    is_listed: bool = True


@dataclass(slots=True, eq=False)
class CallerMemories:
    """The memories of one caller.

    Attributes:
        listed: memories by id, the least recently used first.
        by_content: one memory of each content.
        parts: of its memories, with deleted ones that requests hold.
        bytes: of the parts.
        pinned: bytes of the parts that a pinned memory keeps.
    """

    listed: OrderedDict[str, Entry] = field(default_factory=OrderedDict)
    by_content: dict[bytes, Entry] = field(default_factory=dict)
    parts: dict[Hashable, Part] = field(default_factory=dict)
    bytes: int = 0
    pinned: int = 0

    @property
    def evictable_bytes(self) -> int:
        """Bytes of the parts that no pinned memory keeps."""
        return self.bytes - self.pinned

    def add(self, entry: Entry) -> None:
        """Add a memory as the most recently used."""
        self.listed[entry.memory.id] = entry
        self.by_content[entry.memory.content] = entry
        for key, size in entry.parts.items():
            part = self.parts.setdefault(key, Part(0))
            grown = max(0, size - part.bytes)
            part.bytes += grown
            part.memories += 1
            self.bytes += grown
            self.pinned += grown if part.pinned else 0
        if entry.pinned:
            self._pin(entry)

    def pin(self, entry: Entry) -> None:
        """Pin a memory."""
        if not entry.pinned:
            entry.pinned = True
            self._pin(entry)

    def unlist(self, entry: Entry) -> None:
        """Let a memory be found no longer; a pinned one is pinned no longer."""
        entry.is_listed = False
        del self.listed[entry.memory.id]
        if self.by_content.get(entry.memory.content) is entry:
            del self.by_content[entry.memory.content]
        if entry.pinned:
            for part in self._parts(entry):
                part.pinned -= 1
                self.pinned -= 0 if part.pinned else part.bytes

    def remove_parts(self, entry: Entry) -> None:
        """Stop counting the parts of an unlisted memory that no other one keeps."""
        for key in entry.parts:
            part = self.parts[key]
            part.memories -= 1
            if not part.memories:
                self.bytes -= part.bytes
                del self.parts[key]

    def added_bytes(self, parts: Mapping[Hashable, int]) -> int:
        """Return by how many bytes parts would make the account larger."""
        return sum(max(0, size - self.parts[key].bytes) if key in self.parts else size for key, size in parts.items())

    def pinned_bytes(self, parts: Mapping[Hashable, int]) -> int:
        """Return by how many bytes pinning parts would make `pinned` larger."""
        return sum(size for key, size in parts.items() if (part := self.parts.get(key)) is None or not part.pinned)

    def shared_bytes(self, keys: Iterable[Hashable]) -> int:
        """Return the bytes of those parts that several memories keep."""
        return sum(part.bytes for key in keys if (part := self.parts.get(key)) and part.memories > 1)

    def evictions(self, kept: Iterable[Hashable]) -> Iterator[tuple[Entry, int]]:
        """Yield memories that may be evicted, the least recently used first, each with the bytes that this would free.

        Args:
            kept: parts of the new memory, which stay.
        """
        lost = Counter(dict.fromkeys(kept, -1))
        for entry in list(self.listed.values()):
            if entry.pinned or entry.holds:
                continue
            freed = 0
            for key in entry.parts:
                lost[key] += 1
                part = self.parts[key]
                freed += part.bytes if lost[key] == part.memories else 0
            yield entry, freed

    def _pin(self, entry: Entry) -> None:
        for part in self._parts(entry):
            self.pinned += 0 if part.pinned else part.bytes
            part.pinned += 1

    def _parts(self, entry: Entry) -> list[Part]:
        return [self.parts[key] for key in entry.parts]
