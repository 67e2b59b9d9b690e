"""Messages are split off received bytes, in pieces of any size."""

import itertools
import tracemalloc

import pytest
from attention_server.http2.errors import InvalidMessage, MessageTooLarge
from attention_server.http2.messages import GROWTH, LEAST_ROOM, PREFIX, QUEUED, MessageReader
from hypothesis import given
from hypothesis import strategies as st

MOST = 100_000


def prefixed(content: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(content).to_bytes(4, "big") + content


@given(
    sizes=st.lists(st.sampled_from((0, 1, 4, 100, LEAST_ROOM, LEAST_ROOM + 1, 70_000)), max_size=6)
    | st.lists(st.just(0), min_size=QUEUED - 1, max_size=QUEUED),
    pieces=st.lists(st.sampled_from((1, 2, 5, 6, 1000, 5000, 80_000)), min_size=1, max_size=40),
)
def test_any_pieces(sizes, pieces):
    """In pieces of any size, the messages are the sent ones, and each byte is counted until its message is complete."""
    sent = [(i % 2, bytes([i]) * size) for i, size in enumerate(sizes)]
    left = memoryview(b"".join(prefixed(content, flag) for flag, content in sent))
    messages, came, taken = MessageReader(MOST), 0, 0
    for size in itertools.chain(pieces, itertools.repeat(len(left))):
        lent = bytearray(left[:size])
        messages.feed(memoryview(lent))
        lent[:] = b"\xff" * len(lent)  # the buffer is reused
        came, left = came + len(lent), left[size:]
        whole = sum(len(content) + PREFIX for _, content in itertools.islice(messages.complete, taken, None))
        assert messages.incomplete_bytes + whole == came
        if not left:
            break
    assert [(flag, bytes(content)) for flag, content in messages.complete] == sent
    assert not messages.incomplete_bytes


def test_more_than_are_cut_off():
    """Behind QUEUED messages, bytes are held as received, and split when the messages are read."""
    messages = MessageReader(MOST)
    for piece in (prefixed(b"ab") * (QUEUED + 50), prefixed(b"cd") * QUEUED, prefixed(b"ef")[:3]):
        messages.feed(memoryview(piece))
        assert len(messages.complete) == QUEUED
    found = []
    while messages.complete:
        found.append(bytes(messages.complete.popleft()[1]))
        if not messages.complete:
            messages.split()
    assert found == [b"ab"] * (QUEUED + 50) + [b"cd"] * QUEUED
    assert messages.incomplete_bytes == 3
    messages.feed(memoryview(prefixed(b"ef")[3:]))
    assert bytes(messages.complete.popleft()[1]) == b"ef"


def test_what_is_laid_out():
    """Room for a message grows with its received bytes: a large length alone reserves nothing."""
    least = 16 * 1024  # bytes of further objects, far below the length
    first = prefixed(bytes(2**20))[: PREFIX + 10]
    tracemalloc.start()
    try:
        messages = MessageReader(2**30)
        messages.feed(memoryview(first))
        assert tracemalloc.get_traced_memory()[0] < LEAST_ROOM + least
        for received in range(1010, 1_000_011, 1000):
            messages.feed(memoryview(bytes(1000)))
            assert tracemalloc.get_traced_memory()[0] <= GROWTH * received + LEAST_ROOM + least
    finally:
        tracemalloc.stop()
    messages.drop()
    assert messages.incomplete_bytes == 0


@pytest.mark.parametrize(
    ("sent", "error", "says"),
    [
        (b"\2\0\0\0\1x", InvalidMessage, "no message of gRPC"),
        (prefixed(bytes(MOST + 1)), MessageTooLarge, f"{MOST + 1} bytes"),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 10**6])
def test_what_is_no_message(sent, error, says, size):
    """A prefix that is not gRPC's is an error once complete, and the messages before it stay."""
    messages = MessageReader(MOST)
    content = prefixed(b"good") + sent

    def add():
        for begin in range(0, len(content), size):
            messages.feed(memoryview(content[begin : begin + size]))

    with pytest.raises(error, match=says):
        add()
    assert [bytes(each) for _, each in messages.complete] == [b"good"]
