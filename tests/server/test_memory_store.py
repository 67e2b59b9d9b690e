"""The store of memories: owners, shares of the budget, pinned and held memories, and parts that are counted once."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from attention_server.contexts.memory import HANDLE_BYTES, Memory
from attention_server.contexts.store import HeldMemories, MemoryStore
from attention_server.errors import Full, InvalidRequest, NotFound, TooLarge

SIZE = 3072  # of the tensors of one memory
COUNTED = SIZE + HANDLE_BYTES


def make(content: str, owner: str = "", size: int = SIZE, ttl: float = 10.0, **given) -> Memory:
    k = np.zeros((1, 1, size // 4), np.float32)
    given = {"tensors": {"k": k, "v": k}, "id": content, **given}
    return Memory(model="m", version=1, tokens=None, ttl=ttl, owner=owner, content=content.encode(), **given)


def store_of(count: float, **given) -> MemoryStore:
    """Return a store with room for so many memories."""
    return MemoryStore(int(count * COUNTED), **given)


def ids(store: MemoryStore, owner: str = "") -> list[str]:
    return [memory.id for memory in store.of("m", owner)]


def put(store: MemoryStore, *names: str, owner: str = "", **given) -> list[Memory]:
    return [store.put(make(name, owner, **given)) for name in names]


def test_the_least_recently_used_goes_first():
    """Within the budget nothing goes; beyond it, the least recently used one. One over the budget evicts nothing."""
    store = store_of(3)
    put(store, "a", "b", "c")
    store.get("a", "m")
    put(store, "d")
    assert ids(store) == ["d", "a", "c"]
    with pytest.raises(TooLarge, match=f"{3 * COUNTED} fit now"):
        put(store, "e", size=4 * COUNTED)
    assert ids(store) == ["d", "a", "c"]


def test_a_memory_is_forgotten_after_its_last_use():
    """The time to live begins anew with each use, and at the end of the request that holds the memory."""
    now = [0.0]
    store = store_of(3, clock=lambda: now[0])
    (memory,) = put(store, "a")
    for later in (9.0, 18.0):
        now[0] = later
        assert store.get("a", "m") is memory
        assert store.describe(memory).seconds_left == 10
    held = HeldMemories(store)
    held.get("a", "m", 1, "", "")
    now[0] = 40.0
    assert ids(store) == ["a"]
    held.release()
    now[0] = 49.0
    assert ids(store) == ["a"]
    now[0] = 50.0
    with pytest.raises(NotFound):
        store.get("a", "m")
    assert ids(store) == []
    assert (store.state().size, store.state().expired) == (0, 1)


def test_made_again_it_is_kept_for_the_longer_of_both():
    """Making the same memory with a shorter time to live does not shorten its life."""
    now = [0.0]
    store = store_of(3, clock=lambda: now[0])
    put(store, "a", ttl=600)
    put(store, "a", ttl=1)
    now[0] = 500.0
    assert ids(store) == ["a"]


def test_a_memory_of_another_version_is_not_found():
    """A memory is bound to the version that projected it, and replaced by one of its id and another version."""
    store = store_of(3)
    (memory,) = put(store, "a")
    assert store.get("a", "m", 1) is memory
    with pytest.raises(NotFound, match="version 1, not 2"):
        store.get("a", "m", 2)
    store.put(make("of version 2", id="a", digest="2"))
    assert store.get("a", "m", 1, "", "2") is not memory
    assert store.state().entries == 1


def test_a_caller_finds_its_own_memories_alone():
    """Another caller's memory is not found, listed or deleted; equal content and equal ids are apart."""
    store = store_of(9)
    (mine,) = put(store, "a", owner="me")
    with pytest.raises(NotFound) as missing:
        store.get("a", "m", owner="you")
    with pytest.raises(NotFound) as unknown:
        store.get("b", "m", owner="you")
    assert str(missing.value).replace("'a'", "'b'") == str(unknown.value)
    with pytest.raises(NotFound):
        store.delete("a", "m", "you")
    assert (ids(store, "you"), ids(store)) == ([], [])
    theirs = store.put(make("a", "you", id=""))
    assert store.put(make("a", "me", id="")) is mine
    assert theirs.id != mine.id
    store.delete(theirs.id, "m", "you")
    assert ids(store, "me") == ["a"]
    with pytest.raises(InvalidRequest):
        store.put(make("b", "me", id="a"))


def test_ids_are_random():
    """Memories of one content have different ids in different stores: an id tells nothing of the content."""
    made = {MemoryStore(2**20).put(make("a", id="")).id for _ in range(50)}
    assert len(made) == 50
    assert {len(each) for each in made} == {32}


def test_a_caller_within_its_share_loses_nothing():
    """A caller over its share loses its least recently used memories, to its own new ones and to another caller's."""
    store = store_of(4)
    put(store, "a", "b", "c", "d", owner="first")
    put(store, "x", owner="second")
    assert (ids(store, "first"), ids(store, "second")) == (["d", "c", "b"], ["x"])
    put(store, "y", "z", owner="second")
    assert (ids(store, "first"), ids(store, "second")) == (["d", "c"], ["z", "y"])
    with pytest.raises(TooLarge, match=f"{2 * COUNTED} fit now: .* shared equally by 2 callers"):
        put(store, "large", owner="second", size=2 * COUNTED)
    assert (ids(store, "first"), ids(store, "second")) == (["d", "c"], ["z", "y"])
    put(store, "1", owner="third")
    assert sorted(map(len, (ids(store, "first"), ids(store, "second"), ids(store, "third")))) == [1, 1, 2]


def test_pinned_memories_are_not_evicted():
    """A pinned memory stays; more than the caller's share of half the budget is refused with the bytes that fit."""
    store = store_of(8)
    put(store, "a", "b", pinned=True)
    put(store, *"cdefghijk")
    assert {"a", "b"} < set(ids(store))
    with pytest.raises(TooLarge, match=f"would pin {3 * COUNTED} bytes; {2 * COUNTED} more fit") as refused:
        put(store, "p", size=2 * COUNTED + SIZE, pinned=True)
    assert refused.value.field == "pinned"
    put(store, "l", "k", pinned=True)  # one is new, one was not pinned
    assert store.state().pinned_size == 4 * COUNTED
    with pytest.raises(TooLarge, match=f"would pin {COUNTED} bytes; 0 more fit"):
        put(store, "x", owner="late", pinned=True)
    put(store, "x", "y", "z", owner="late")
    assert ids(store, "late") == ["z", "y"]
    store.delete("a", "m")
    assert store.state().pinned_size == 3 * COUNTED


def test_a_memory_that_a_request_holds_is_not_evicted():
    """What requests hold is neither evicted nor uncounted; a memory that needs the room may be sent again later."""
    store = store_of(2)
    put(store, "a", "b")
    held = HeldMemories(store)
    for each in ("a", "b", "a"):
        held.get(each, "m", 1, "memory", "")
    with pytest.raises(Full):
        put(store, "c")
    store.delete("a", "m")
    assert ids(store) == ["b"]
    assert (store.state().size, store.state().held) == (2 * COUNTED, 2)
    with pytest.raises(Full):
        put(store, "c")
    held.release()
    put(store, "c")
    assert ids(store) == ["c", "b"]
    assert (store.state().size, store.state().held) == (2 * COUNTED, 0)


def test_shared_parts_are_counted_once():
    """Memories over one buffer count its bytes once, until the last of them is gone, and list them as shared."""
    store = store_of(10)
    buffer = np.zeros((1, 768, 1), np.float32)
    views = [{"k": buffer[:, :length], "v": buffer[:, :length]} for length in (1, 500, 768)]
    memories = [store.put(make(str(i), tensors=tensors)) for i, tensors in enumerate(views)]
    assert store.state().size == SIZE + 3 * HANDLE_BYTES
    assert {store.describe(each).shared_size for each in memories} == {SIZE}
    again = store.put(make("0", id="another id"))
    assert again.tensors is memories[0].tensors
    assert store.state().size == SIZE + 4 * HANDLE_BYTES
    for each in ("1", "0", "another id"):
        store.delete(each, "m")
    assert store.describe(memories[2]).shared_size == 0
    assert store.state().size == COUNTED
    store.delete("2", "m")
    assert store.state().size == 0


def test_eviction_of_shared_parts_goes_on_until_there_is_room():
    """Evicting one of two memories over a buffer frees nothing: both go, and the new one fits."""
    store = store_of(1.9)
    tensors = make("").tensors
    for name in ("a", "b"):
        store.put(make(name, tensors=tensors))
    put(store, "c")
    assert ids(store) == ["c"]


def test_many_at_once_keep_the_budget():
    """Threads that put, hold and forget at once as two callers leave the sizes in order."""
    store = store_of(6)

    def churn(name: int) -> None:
        owner = "ab"[name % 2]
        for step in range(200):
            memory = make(f"{name} {step % 7}", owner, SIZE + 4 * (step % 5), pinned=step % 50 == 0)
            held = HeldMemories(store, owner)
            try:
                store.put(memory)
                held.get(memory.id, "m", 1, "", "")
                if step % 3:
                    store.delete(memory.id, "m", owner)
            except (NotFound, Full, TooLarge):
                pass  # another thread's memories have pushed it out, or are held or pinned
            held.release()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(churn, range(8)))
    kept = store.of("m", "a") + store.of("m", "b")
    assert store.state().size == sum(sum(memory.parts.values()) for memory in kept) <= 6 * COUNTED
    for memory in kept:
        store.delete(memory.id, "m", memory.owner)
    state = store.state()
    assert (state.size, state.entries, state.pinned_size, state.held_size) == (0, 0, 0, 0)
