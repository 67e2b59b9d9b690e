"""Kept prefixes: rows are shared, never changed, and hardly ever copied."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from attention_server.contexts.memory import Memory
from attention_server.contexts.past import MAX_COPIED, Continuation, Past
from attention_server.contexts.store import HeldMemories, MemoryStore
from attention_server.errors import InvalidRequest

WIDTHS = ((6, 4), (6, 6))
ROW = 4 * sum(map(sum, WIDTHS))  # bytes
RNG = np.random.default_rng(0)


def put_behind(before: Past | None, rows: int, *, factor: float = 1.0, data_type: type = np.float32):
    """Put random rows behind a prefix; return the continuation and the rows of each site."""
    continuation = Continuation(before, keeps=True, data_type=np.dtype(data_type))
    continuation.open(rows, WIDTHS)
    added = [[factor * RNG.standard_normal((rows, width)).astype(np.float32) for width in site] for site in WIDTHS]
    for site, (k, v) in enumerate(added):
        continuation.pieces(site, k, v)
    return continuation, added


def content(past: Past) -> list[np.ndarray]:
    return [np.concatenate(each) for site in range(len(WIDTHS)) for each in zip(*past.read(site), strict=True)]


class Tree:
    """Prefixes with the rows that each has to have."""

    def __init__(self, rows: int) -> None:
        continuation, added = put_behind(None, rows)
        self.kept = [(continuation.kept, [x for site in added for x in site])]
        self.copied = 0

    def grow(self, parent: int, rows: int) -> None:
        before, expected = self.kept[parent]
        continuation, added = put_behind(before, rows)
        self.copied += continuation.copied
        flat = [x for site in added for x in site]
        self.kept.append((continuation.kept, [np.concatenate(each) for each in zip(expected, flat, strict=True)]))

    def check(self) -> None:
        for past, expected in self.kept:
            assert past.length == len(expected[0])
            for found, rows in zip(content(past), expected, strict=True):
                np.testing.assert_array_equal(found, rows)

    def bytes(self, begin: int = 0) -> int:
        return sum({id(block): block.size for past, _ in self.kept[begin:] for block in past.blocks}.values())


def test_no_prefix_changes_whatever_grows_behind_it():
    """Chains, branches and branches of branches, of any lengths: each has its own rows to the end."""
    tree = Tree(7)
    for _ in range(300):
        tree.grow(int(RNG.integers(max(0, len(tree.kept) - 5), len(tree.kept))), int(RNG.choice([1, 1, 1, 2, 9])))
    tree.check()


def test_a_hundred_branches_of_a_prefix():
    """They weigh less than 1.2 prefixes and their own tokens, from a prefix in one piece and from one in several."""
    for steps in (0, 40):
        tree = Tree(512)
        for _ in range(steps):
            tree.grow(len(tree.kept) - 1, 1)
        tip = len(tree.kept) - 1
        for _ in range(100):
            tree.grow(tip, 3)
        tree.check()
        assert tree.bytes(tip) < (1.2 * (512 + steps) + 300) * ROW


@pytest.mark.parametrize("prefix", [64, 512])
def test_steps_copy_no_prefix(prefix):
    """The bytes that 400 steps copy are some of their own, whatever the length of the prefix; pieces stay few."""
    tree = Tree(prefix)
    for _ in range(400):
        tree.grow(len(tree.kept) - 1, 1)
    assert tree.copied <= 4 * 400 * ROW
    last = tree.kept[-1][0]
    assert len(last.pieces) <= 2 + 400 // MAX_COPIED
    for _ in range(100):  # a beam of two: one continues in place, one branches
        tree.grow(len(tree.kept) - 1, 1)
        tree.grow(len(tree.kept) - 2, 1)
    assert len(tree.kept[-1][0].pieces) <= 2 + 10 + 500 // MAX_COPIED
    tree.check()


def test_two_that_go_on_at_a_time():
    """Of many that extend one memory at once, each has rows of its own."""
    (first, _) = Tree(5).kept[0]
    second = first.extend(2)
    second.write(0, *[np.ones((2, width), np.float32) for width in WIDTHS[0]])
    with ThreadPoolExecutor(8) as pool:
        grown = list(pool.map(lambda _: second.extend(1), range(64)))
    places = {(id(each.pieces[-1].block), each.pieces[-1].length) for each in grown}
    assert len(places) == 64


def test_room_that_was_not_used_is_given_back():
    """A failed computation leaves the room behind the prefix to the next one."""
    (past, _) = Tree(5).kept[0]
    grown = past.extend(1).extend(1).extend(1)  # into a block with room
    continuation, _ = put_behind(grown, 1)
    place = continuation.kept.pieces[-1]
    continuation.close()
    assert put_behind(grown, 1)[0].kept.pieces[-1] == place


def test_a_larger_block_that_is_not_kept_is_made_again():
    """A failed computation that made a larger block for a full one leaves the full one as it was."""
    (past, _) = Tree(5).kept[0]
    full = past.extend(4)
    for _ in range(2):
        continuation, _ = put_behind(full, 1)
        assert continuation.copied == 4 * ROW  # into the larger block
        continuation.close()


def test_a_request_that_fails_gives_its_room_back():
    """The end of a request closes the sequences that the store does not keep, and no other."""
    (past, _) = Tree(5).kept[0]
    grown = past.extend(1).extend(1).extend(1)
    held = HeldMemories(MemoryStore(2**20))
    failed, _ = put_behind(grown, 1)
    kept, _ = put_behind(grown, 2)
    place = failed.kept.pieces[-1]
    for each in (failed, kept):
        held.close_at_end(each)
    kept.hand_over()
    held.release()
    assert failed.kept is None
    assert put_behind(grown, 1)[0].kept.pieces[-1] == place


def test_half_precision_and_its_error():
    """FP16 takes half the bytes; the error told is the largest one of k and v; what FP16 cannot hold is refused."""
    continuation, added = put_behind(None, 9, data_type=np.float16)
    memory = Memory("", "m", 1, {}, None, 1.0, past=continuation.kept)
    errors = [np.abs(x - y).max() for x, y in zip(content(memory.past), (x for s in added for x in s), strict=True)]
    assert memory.data_type == "FP16"
    assert memory.max_storage_error == pytest.approx(max(errors))
    assert 0 < max(errors) < 1e-2
    assert memory.size == 9 * ROW // 2
    with pytest.raises(InvalidRequest, match="FP16 ends at 65504"):
        put_behind(memory.past, 1, factor=1e6)


def test_the_store_counts_shared_blocks_once():
    """A store of a prefix and its branches has the bytes of their blocks, and none when all are deleted."""
    store, tree = MemoryStore(2**20), Tree(100)
    for _ in range(20):
        tree.grow(0, 2)
    kept = [
        store.put(Memory("", "m", 1, {}, None, 60.0, content=bytes([i]), past=past))
        for i, (past, _) in enumerate(tree.kept)
    ]
    overhead = store.state().size - tree.bytes()
    assert 0 < overhead < 0.5 * 2**16
    assert store.describe(kept[1]).shared_size == 100 * ROW
    for memory in kept:
        store.delete(memory.id, "m")
    assert store.state().size == 0
