"""The store of memories: each belongs to one caller, and callers share a budget of bytes.

The budget without the bytes of pinned memories is divided equally among the callers that have memories at the moment.
Where a new memory needs room, the caller with the most bytes that are not pinned, the new memory counted as its
caller's, loses its least recently used memory, and so on. So a caller within its share loses memories to its own new
ones alone. Pinned memories are not evicted; they have at most half of the budget, each caller an equal share of that
half. A memory that a running or waiting request holds is not evicted, and its bytes are counted until the request ends.
"""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from attention_server.budget.account import OPEN, Lease
from attention_server.contexts.caller_memories import CallerMemories, Entry
from attention_server.contexts.memory import Memory, new_id
from attention_server.contexts.past import Continuation
from attention_server.domain.messages import MemoryDescription
from attention_server.errors import Full, InvalidRequest, NotFound, TooLarge

PINNED = 0.5  # of the budget


@dataclass(slots=True)
class MemoryState:
    """The memories kept at this moment, and counts of lookups and removals since the start.

    A memory that is pinned and held counts as pinned.

    Attributes:
        budget, size: bytes allowed, and bytes used.
        entries: number of memories.
        held, pinned: number of memories that requests hold, and of pinned ones.
        held_size, pinned_size: bytes of these.
        hits, misses: lookups that found a memory, and that did not.
        evicted, expired: memories forgotten to make room, and for lack of use.
        copied: bytes of prefixes that were copied to go on behind them.
    """

    budget: int
    size: int = 0
    entries: int = 0
    held: int = 0
    pinned: int = 0
    held_size: int = 0
    pinned_size: int = 0
    hits: int = 0
    misses: int = 0
    evicted: int = 0
    expired: int = 0
    copied: int = 0


class MemoryStore:
    """Memories of all callers within a budget of bytes.

    Args:
        budget: bytes of all memories together.
        clock: `time.monotonic`.
        lease: holds the bytes of all memories, within the account of the process.
    """

    def __init__(self, budget: int, clock: Callable[[], float] = time.monotonic, lease: Lease | None = None) -> None:
        self._budget = budget
        self._lease = lease or OPEN.lease("")
        self._clock = clock
        self._lock = threading.Lock()
        self._by_owner: dict[str, CallerMemories] = {}  # by owner; each has a memory
        self._held: set[Entry] = set()
        self._next_expiry = math.inf  # no memory expires before
        self._state = MemoryState(budget)

    def put(self, memory: Memory) -> Memory:
        """Keep a memory; return the memory that is kept.

        A memory without an id gets the id of its owner's memory of the same content, or else a random one. A second
        memory of the same content and id only renews the first: the longer time to live holds, and it is pinned if one
        of the two is. Under a new id a memory of known content shares the tensors of the first. A memory replaces that
        of its id and another version.

        Raises:
            InvalidRequest: its owner has a memory of other content under this id.
            TooLarge: the memory is over the budget, or over its owner's share.
            Full: requests in progress hold the memories that would make room.
        """
        with self._lock:
            self._sweep()
            caller = self._by_owner.get(memory.owner) or CallerMemories()
            same = caller.by_content.get(memory.content)
            known = caller.listed.get(memory.id) if memory.id else same
            if known is not None and known.memory.content == memory.content:
                self._renew(caller, known, memory)
                return known.memory
            if known is not None:
                if known.memory.source == memory.source:
                    raise InvalidRequest("names a memory of other content", field="id")
                self._forget(known)
            if same is not None:
                memory = replace(memory, tensors=same.memory.tensors, tokens=same.memory.tokens, past=same.memory.past)
            if not memory.id:
                memory = replace(memory, id=new_id())
            entry = Entry(memory, memory.parts, memory.ttl, memory.pinned)
            if entry.pinned:
                self._check_pinned(caller, entry)
            for victim in self._victims(caller, entry):
                self._forget(victim)
                self._state.evicted += 1
            self._by_owner[memory.owner] = caller
            caller.add(entry)
            self._lease.settle(self._bytes())
            self._touch(caller, entry)
            return memory

    def get(
        self, id_: str, model: str, version: int = 0, field: str = "memory", digest: str = "", owner: str = ""
    ) -> Memory:
        """Return a memory and extend its time.

        Raises:
            NotFound: the owner has no such memory, or it belongs to a different model, version or digest.
        """
        with self._lock:
            return self._find(id_, model, version, field, digest, owner).memory

    def hold(self, id_: str, model: str, version: int, field: str, digest: str, owner: str) -> Entry:
        """Return a memory's entry, which is not evicted before it is released as often as it was held.

        Raises:
            NotFound: as `get`.
        """
        with self._lock:
            entry = self._find(id_, model, version, field, digest, owner)
            entry.holds += 1
            self._held.add(entry)
            return entry

    def release(self, entry: Entry) -> None:
        """Release a memory; its time begins anew."""
        with self._lock:
            entry.holds -= 1
            if entry.holds:
                return
            self._held.discard(entry)
            if entry.is_listed:
                self._touch(self._by_owner[entry.memory.owner], entry)
            else:
                self._remove_parts(entry)

    def time_to_live(self, memory: Memory) -> float:
        """Return the seconds that a memory is kept after its last use: the longest time that was asked for."""
        with self._lock:
            caller = self._by_owner.get(memory.owner)
            entry = caller.listed.get(memory.id) if caller else None
            return memory.ttl if entry is None or entry.memory is not memory else entry.ttl

    def count_copied(self, size: int) -> None:
        """Count bytes of a prefix that were copied to go on behind it."""
        with self._lock:
            self._state.copied += size

    def of(self, model: str, owner: str = "") -> list[Memory]:
        """Return an owner's memories of a model, the most recently used first."""
        with self._lock:
            self._sweep()
            caller = self._by_owner.get(owner) or CallerMemories()
            return [each.memory for each in reversed(caller.listed.values()) if each.memory.model == model]

    def describe(self, memory: Memory) -> MemoryDescription:
        """Describe a memory as it is kept now."""
        with self._lock:
            caller = self._by_owner.get(memory.owner) or CallerMemories()
            entry = caller.listed.get(memory.id)
            return MemoryDescription(
                id=memory.id,
                model=memory.model,
                version=memory.version,
                source_length=memory.source_length,
                prefix_length=memory.prefix_length,
                tokens=memory.shown,
                truncated_tokens=memory.truncated,
                size=memory.size,
                shared_size=caller.shared_bytes(memory.tensor_parts),
                seconds_left=0.0 if entry is None else max(0.0, entry.expires - self._clock()),
                pinned=entry is not None and entry.pinned,
                data_type=memory.data_type,
                max_storage_error=memory.max_storage_error,
            )

    def delete(self, id_: str, model: str, owner: str = "") -> None:
        """Forget a memory. Requests that hold it finish.

        Raises:
            NotFound: the owner has no such memory.
        """
        with self._lock:
            self._forget(self._find(id_, model, 0, "id", "", owner))

    def forget(self, model: str, version: int, digest: str) -> None:
        """Forget every memory of a version that is no longer served."""
        with self._lock:
            for entry in self._entries():
                memory = entry.memory
                if memory.source == (model, version, digest):
                    self._forget(entry)

    def state(self) -> MemoryState:
        """Return counts and sizes at this moment."""
        with self._lock:
            self._sweep()
            held = [each for each in self._held if not each.pinned]
            parts = {key: (each.memory.owner, size) for each in held for key, size in each.parts.items()}
            return replace(
                self._state,
                entries=sum(len(each.listed) for each in self._by_owner.values()),
                size=self._bytes(),
                held=len(held),
                held_size=sum(
                    size for key, (owner, size) in parts.items() if not self._by_owner[owner].parts[key].pinned
                ),
                pinned=sum(each.pinned for each in self._entries()),
                pinned_size=self._pinned(),
            )

    def _find(self, id_: str, model: str, version: int, field: str, digest: str, owner: str) -> Entry:
        self._sweep()
        caller = self._by_owner.get(owner)
        entry = caller.listed.get(id_) if caller else None
        self._state.misses += 1  # until it is found
        if caller is None or entry is None or entry.memory.model != model:
            raise NotFound(f"model {model!r} keeps no memory {id_[:64]!r}; create it again", field=field)
        memory = entry.memory
        if version not in (0, memory.version):
            raise NotFound(
                f"memory {id_!r} is of version {memory.version}, not {version}; create it again", field=field
            )
        if digest not in ("", memory.digest):
            raise NotFound(f"memory {id_!r} is of what version {version} was before; create it again", field=field)
        self._state.misses -= 1
        self._state.hits += 1
        self._touch(caller, entry)
        return entry

    def _touch(self, caller: CallerMemories, entry: Entry) -> None:
        entry.expires = self._clock() + entry.ttl
        self._next_expiry = min(self._next_expiry, entry.expires)
        caller.listed.move_to_end(entry.memory.id)

    def _renew(self, caller: CallerMemories, entry: Entry, memory: Memory) -> None:
        if memory.pinned and not entry.pinned:
            self._check_pinned(caller, entry)
            caller.pin(entry)
        entry.ttl = max(entry.ttl, memory.ttl)
        self._touch(caller, entry)

    def _check_pinned(self, caller: CallerMemories, entry: Entry) -> None:
        """Check that a memory may be pinned.

        Raises:
            TooLarge: it is over its owner's share, or over the rest of the budget for pinned memories.
        """
        most = int(self._budget * PINNED)
        share = most // self._callers_with(caller)
        fits = min(share - caller.pinned, most - self._pinned())
        added = caller.pinned_bytes(entry.parts)
        if added > fits:
            raise TooLarge(
                f"the memory would pin {added} bytes; {max(0, fits)} more fit into the caller's share of pinned "
                f"memories, {share} bytes; keep it unpinned, or delete pinned memories",
                field="pinned",
            )

    def _victims(self, caller: CallerMemories, new: Entry) -> list[Entry]:
        """Return the memories to evict for a new one; nothing is evicted for one that does not fit.

        Raises:
            TooLarge, Full: as `put`.
        """
        added = caller.added_bytes(new.parts)
        over = self._bytes() + added - self._budget
        if over <= 0:
            return []
        share = (self._budget - self._pinned() - added * new.pinned) / self._callers_with(caller)
        used = {each: each.evictable_bytes for each in self._by_owner.values()} | {caller: caller.evictable_bytes}
        used[caller] += 0 if new.pinned else added
        evictions = {each: each.evictions(new.parts) for each in used}
        victims: list[Entry] = []
        while over > 0:
            candidates = [each for each in evictions if each is caller or used[each] > share]
            if not candidates:
                raise self._no_room(added, added - over, used, share, caller, new)
            largest = max(candidates, key=used.__getitem__)
            victim, freed = next(evictions[largest], (None, 0))
            if victim is None:
                del evictions[largest]
                continue
            victims.append(victim)
            used[largest] -= freed
            over -= freed
        return victims

    def _no_room(
        self, added: int, fits: int, used: dict[CallerMemories, int], share: float, caller: CallerMemories, new: Entry
    ) -> TooLarge | Full:
        """Return the error of a memory for which evictions make too little room."""
        held = {
            key: each.parts[key].bytes
            for each in used
            if each is caller or used[each] > share
            for entry in each.listed.values()
            if entry.holds and not entry.pinned
            for key in entry.parts
            if key not in new.parts and not each.parts[key].pinned
        }
        if added <= fits + sum(held.values()):
            return Full(f"the memory has {added} bytes; requests in progress hold the memories that would make room")
        return TooLarge(
            f"the memory has {added} bytes; {max(0, fits)} fit now: all memories together have {self._budget} bytes "
            f"(--memory-mib), of which {self._pinned()} are pinned, and the rest is shared equally by "
            f"{self._callers_with(caller)} callers"
        )

    def _sweep(self) -> None:
        """Forget the memories whose time is over."""
        now = self._clock()
        if now < self._next_expiry:
            return
        for entry in self._entries():
            if entry.expires <= now and not entry.holds:
                self._forget(entry)
                self._state.expired += 1
        self._next_expiry = min((each.expires for each in self._entries() if not each.holds), default=math.inf)

    def _forget(self, entry: Entry) -> None:
        self._by_owner[entry.memory.owner].unlist(entry)
        if not entry.holds:
            self._remove_parts(entry)

    def _remove_parts(self, entry: Entry) -> None:
        caller = self._by_owner[entry.memory.owner]
        caller.remove_parts(entry)
        if not caller.parts:
            del self._by_owner[entry.memory.owner]
        self._lease.settle(self._bytes())

    def _entries(self) -> list[Entry]:
        return [entry for caller in self._by_owner.values() for entry in caller.listed.values()]

    def _bytes(self) -> int:
        return sum(each.bytes for each in self._by_owner.values())

    def _pinned(self) -> int:
        return sum(each.pinned for each in self._by_owner.values())

    def _callers_with(self, caller: CallerMemories) -> int:
        """Return the number of callers that have memories, counting this one."""
        return len({*self._by_owner.values(), caller})


class HeldMemories:
    """What one request holds until it ends: the memories that it names, and room behind them for its sequences.

    Args:
        store: keeps the memories.
        owner: name of the caller; empty without credentials.
    """

    __slots__ = ("_continuations", "_entries", "_owner", "_store")

    def __init__(self, store: MemoryStore, owner: str = "") -> None:
        self._store = store
        self._owner = owner
        self._entries: list[Entry] = []
        self._continuations: list[Continuation] = []

    def get(self, id_: str, model: str, version: int, field: str, digest: str) -> Memory:
        """Return a memory and hold it.

        Raises:
            NotFound: as `MemoryStore.get`.
        """
        entry = self._store.hold(id_, model, version, field, digest, self._owner)
        self._entries.append(entry)
        return entry.memory

    def close_at_end(self, continuation: Continuation) -> None:
        """Give the room of a sequence back when the request ends, unless the store keeps the sequence by then."""
        self._continuations.append(continuation)

    def release(self) -> None:
        """Release the memories and the room."""
        while self._continuations:
            self._continuations.pop().close()
        while self._entries:
            self._store.release(self._entries.pop())
