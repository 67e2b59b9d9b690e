"""Two callers create, extend, branch and delete memories, some held by requests: counted bytes are resident ones."""

import gc
import random
import tracemalloc

import numpy as np
import pytest
from attention_server.contexts.memory import Memory
from attention_server.contexts.past import Continuation
from attention_server.contexts.store import HeldMemories, MemoryStore
from attention_server.errors import Full, NotFound, TooLarge

WIDTHS = ((64, 64), (64, 64))
BUDGET = 4 * 2**20
CALLERS = ("one", "two")


class Soak:
    """A store, the prefixes that two callers know of, and the requests under way."""

    def __init__(self) -> None:
        self.store = MemoryStore(BUDGET)
        self.chance = random.Random(0)  # no secret
        self.known: dict[str, list[str]] = {owner: [] for owner in CALLERS}
        self.held: list[HeldMemories] = []
        self.done: dict[str, int] = {}

    def step(self) -> None:
        owner = self.chance.choice(CALLERS)
        act = self.chance.choices((self.create, self.extend, self.delete, self.hold, self.release), (2, 10, 2, 2, 2))[0]
        try:
            act(owner)
            self.count(act.__name__)
        except (Full, NotFound, TooLarge) as error:
            self.count(type(error).__name__)

    def count(self, name: str) -> None:
        self.done[name] = self.done.get(name, 0) + 1

    def create(self, owner: str) -> None:
        self.put(owner, None, self.chance.randrange(20, 200), pinned=self.chance.random() < 0.05)

    def extend(self, owner: str) -> None:
        """Go on behind a memory that is held meanwhile: the newest one, or any, which then branches."""
        known = self.known[owner]
        id_ = known[-1] if self.chance.random() < 0.7 and known else self.any(owner)
        held = HeldMemories(self.store, owner)
        try:
            before = held.get(id_, "m", 1, "memory", "")
            self.put(owner, before, self.chance.choice((1, 1, 1, 1, 5)), pinned=False)
        finally:
            held.release()

    def put(self, owner: str, before: Memory | None, rows: int, *, pinned: bool) -> None:
        continuation = Continuation(before and before.past, keeps=True)
        continuation.open(rows, WIDTHS)
        for site, widths in enumerate(WIDTHS):
            continuation.pieces(site, *[np.ones((rows, width), np.float32) for width in widths])
        past, content = continuation.kept, self.chance.randbytes(16)
        past.write_tokens(None)
        memory = Memory("", "m", 1, {}, None, 600.0, owner=owner, content=content, pinned=pinned, past=past)
        try:
            self.known[owner].append(self.store.put(memory).id)
        except (Full, TooLarge):
            continuation.close()
            raise

    def any(self, owner: str) -> str:
        return self.chance.choice(self.known[owner][-50:] or [""])

    def delete(self, owner: str) -> None:
        self.store.delete(self.any(owner), "m", owner)

    def hold(self, owner: str) -> None:
        held = HeldMemories(self.store, owner)
        held.get(self.any(owner), "m", 1, "memory", "")
        self.held.append(held)

    def release(self, _: str) -> None:
        while len(self.held) > 5 or (self.held and self.chance.random() < 0.5):
            self.held.pop(self.chance.randrange(len(self.held))).release()


@pytest.mark.parametrize("steps", [1_000, pytest.param(10_000, marks=pytest.mark.long)])
def test_counted_bytes_are_resident_ones(steps: int) -> None:
    """Counted bytes stay within the budget, and within a tenth of what is allocated; in the end nothing is counted."""
    soak = Soak()
    tracemalloc.start()
    try:
        for step in range(1, steps + 1):
            soak.step()
            counted = soak.store.state().size
            assert counted <= BUDGET
            if step % (steps // 10) == 0:
                soak.known = {owner: ids[-200:] for owner, ids in soak.known.items()}
                gc.collect()
                allocated = tracemalloc.get_traced_memory()[0]
                assert abs(counted - allocated) < 0.1 * max(counted, 2**20), (step, counted, allocated)
        assert min(soak.done.get(each, 0) for each in ("create", "extend", "delete", "hold", "NotFound")) > steps / 100
        assert soak.store.state().evicted > steps / 100
        while soak.held:
            soak.held.pop().release()
        soak.store.forget("m", 1, "")
        state = soak.store.state()
        assert (state.size, state.entries, state.held_size, state.pinned_size) == (0, 0, 0, 0)
        soak.known.clear()
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 2**19
    finally:
        tracemalloc.stop()
