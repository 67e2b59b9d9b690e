"""Streams: the bounds of a message and of the messages in flight, streams that break, and the order of answers."""

import asyncio
import queue
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice

import grpc
import numpy as np
import pytest
from attention_client import AttentionClient, DeadlineExceeded, InvalidRequest, Sequence, Unavailable
from attention_client.streaming.batcher import BATCH_BYTES, BATCH_SEQUENCES, Batch
from attention_client.streaming.blocking import BlockingStream
from attention_client.streaming.state import (
    IN_FLIGHT,
    IN_FLIGHT_BYTES,
    MAX_FAILURES,
    Deliver,
    Receive,
    Reconnect,
    Release,
    StreamPlan,
    StreamState,
)
from attention_client.streaming.window import Window
from attention_proto.attention.v1 import attention_pb2 as pb
from serving import HANG

pytestmark = pytest.mark.both_grpc_servers

X = np.ones((2, 4), np.float32)


class Broken(grpc.RpcError):
    """A call that ended because the server is gone."""

    def code(self):
        return grpc.StatusCode.UNAVAILABLE

    def details(self):
        return "gone"

    def trailing_metadata(self):
        return ()


class Call:
    """A call that takes messages in a thread, as gRPC does, and answers each until it breaks."""

    def __init__(self, messages):
        self.answers = queue.SimpleQueue()
        self.taker = threading.Thread(target=self.take, args=(messages,), daemon=True)
        self.taker.start()

    def take(self, messages):
        for message in messages:
            results = [pb.Result() for each in message.request.inputs for _ in range(len(each.lengths) or 1)]
            self.answers.put(pb.AttendStreamResponse(id=message.id, response=pb.AttendResponse(results=results)))

    def __iter__(self):
        while (answer := self.answers.get()) is not Broken:
            yield answer
        raise Broken

    def cancel(self):
        self.answers.put(Broken)


@pytest.mark.parametrize("attempt", range(10))
@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
def test_sequences_after_a_break_are_sent_by_the_new_stream(code, attempt, monkeypatch):
    """When a stream breaks while the source pauses, the next stream sends the rest, the very last sequence too."""
    monkeypatch.setattr(Broken, "code", lambda _: code)
    calls = queue.SimpleQueue()
    pause = threading.Event()

    def opened(messages):
        call = Call(messages)
        calls.put(call)
        return call

    def source():
        assert pause.wait(HANG)
        yield "the last"

    def build(items):
        return pb.AttendRequest(inputs=[pb.Sequence(text=each) for each in items])

    stream = BlockingStream(opened, StreamPlan(build, None, seconds=60, return_exceptions=False))
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(lambda: list(stream.answers(source())))
        first = calls.get(timeout=HANG)
        first.cancel()
        second = calls.get(timeout=HANG)
        pause.set()
        assert len(answers.result(HANG)) == 1
    for call in (first, second):
        call.taker.join(HANG)
        assert not call.taker.is_alive()


def test_failures_are_counted_anew_after_an_answer(attend_many, target, service):
    """A stream may break any number of times, as long as there is an answer after fewer than five breaks in a row."""
    silent = [0] * (MAX_FAILURES - 1)
    service.breaks = [*silent, 1, *silent[1:], 1, *silent[1:]]
    broken = len(service.breaks)
    sequences = [X[: 1 + i % 2] for i in range(4 * BATCH_SEQUENCES)]
    answers = list(attend_many(target, "any", sequences))
    assert [each.output.shape for each in answers] == [each.shape for each in sequences]
    assert len(service.streams) == broken + 1


def test_a_stream_that_never_answers_is_given_up(attend_many, target, service):
    """The fifth break without an answer raises the stream's error."""
    service.breaks = [0] * MAX_FAILURES
    # The server's words, or those of grpc.aio where its core finds the stream broken while it writes.
    with pytest.raises(Unavailable, match=r"broken|Internal error from Core"):
        list(attend_many(target, "any", [X]))
    assert len(service.streams) == MAX_FAILURES


def test_the_wait_before_another_stream(attend_many, target, service):
    """The client opens another stream no sooner than the server asked for."""
    service.breaks = [0, 0]
    service.retry_delay = 0.2
    begin = time.monotonic()
    assert len(list(attend_many(target, "any", [X]))) == 1
    assert time.monotonic() - begin >= 0.4


def test_unanswered_messages_are_sent_again(attend_many, target, service):
    """The stream after a break sends every message that had no answer, and none that had one."""
    service.breaks = [2]
    answers = list(attend_many(target, "any", [X] * (5 * BATCH_SEQUENCES)))
    assert len(answers) == 5 * BATCH_SEQUENCES
    assert [[message.id for message in stream] for stream in service.streams] == [["0", "1"], ["2", "3", "4"]]


def test_a_message_holds_a_bounded_number_of_sequences(attend_many, target, service):
    """Short sequences travel 32 in a message; the last message has the rest."""
    assert len(list(attend_many(target, "any", [X] * (2 * BATCH_SEQUENCES + 3)))) == 2 * BATCH_SEQUENCES + 3
    (stream,) = service.streams
    assert [sum(len(each.lengths) or 1 for each in message.request.inputs) for message in stream] == [32, 32, 3]


ONE_ROW = np.ones((1, 1024), np.float32)
PART = BATCH_BYTES // 3 + 4096  # bytes: three are more than a message has


@pytest.mark.parametrize(
    "sequence",
    [
        np.ones((PART // 4096, 1024), np.float32),
        Sequence(query=np.ones((PART // 4096, 1024), np.float32)),
        Sequence(query=ONE_ROW, key=np.ones((PART // 4096, 1024), np.float32)),
        Sequence(query=ONE_ROW, value=np.ones((1, PART // 4), np.float32)),
        Sequence(query=ONE_ROW, allowed=np.ones((1, PART), np.bool_)),
        Sequence(query=ONE_ROW, bias=np.ones((1, PART // 4), np.float32)),
    ],
    ids=["array", "query", "key", "value", "allowed", "bias"],
)
def test_a_message_holds_a_bounded_number_of_bytes(attend_many, target, service, sequence):
    """Long sequences fill a message at 1 MiB, for each of the arrays that a sequence has."""
    assert len(list(attend_many(target, "any", [sequence] * 7, outputs=["weights"]))) == 7
    (stream,) = service.streams
    assert [sum(len(each.lengths) or 1 for each in message.request.inputs) for message in stream] == [3, 3, 1]


@pytest.mark.parametrize(
    ("sequence", "bound"),
    [
        (X, (IN_FLIGHT + 1) * BATCH_SEQUENCES),
        (np.ones((1, 2**20), np.float32), IN_FLIGHT_BYTES // 2**22 + 1),
        (np.ones((1, 3 * 2**16), np.float32), 2 * (IN_FLIGHT_BYTES // (3 * 2**19) + 1)),
    ],
    ids=["messages", "bytes", "bytes of two"],
)
def test_messages_in_flight_are_bounded(attend_many, target, service, sequence, bound):
    """The source is ahead of the answers by the messages in flight, and one message that waits for room."""
    drawn = delivered = 0

    def source():
        nonlocal drawn
        for _ in range(4 * bound):
            drawn += 1
            assert drawn - delivered <= bound
            if drawn == bound:
                service.may_answer.set()
            yield sequence

    service.may_answer.clear()
    for _ in attend_many(target, "any", source(), outputs=["weights"]):
        delivered += 1
    assert delivered == drawn == 4 * bound


@pytest.mark.parametrize("position", [0, 1, 2, 5, BATCH_SEQUENCES - 1, BATCH_SEQUENCES])
def test_an_error_is_delivered_in_its_position(attend_many, target, position):
    """A sequence without a form on the wire yields its own error in its position; the rest is answered."""
    sequences = [[X, X, "a text", X][i % 4] for i in range(BATCH_SEQUENCES + 3)]
    sequences[position] = X > 0
    answers = list(attend_many(target, "any", sequences, return_exceptions=True, outputs=["weights"]))
    assert [i for i, each in enumerate(answers) if isinstance(each, Exception)] == [position]
    assert isinstance(answers[position], InvalidRequest)
    assert answers[position].field == "inputs[0].query"
    shapes = [(3, 2, 2) if isinstance(each, str) else (1, 2, 2) for each in sequences]
    del answers[position], shapes[position]
    assert [each.weights.shape for each in answers] == shapes


def test_an_error_is_raised_in_its_position(attend_many, target):
    """Without `return_exceptions` the answers before a bad sequence come, and then its error."""
    answers = attend_many(target, "any", [X, X, X > 0, X])
    assert [next(answers).output.shape for _ in range(2)] == [X.shape] * 2
    with pytest.raises(InvalidRequest, match="must hold numbers"):
        next(answers)


class Tensor:
    """An array-like whose conversion fails in its own way, as that of a tensor on another device."""

    def __array__(self, *_, **__):
        raise LookupError("the device is gone")


@pytest.mark.parametrize("position", [0, BATCH_SEQUENCES - 1, BATCH_SEQUENCES + 1])
@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ("\ud800", "text"),
        (Sequence(text=7), "text"),
        (Sequence(text="a", memory_text=b"\xff"), "memory_text"),
        (Sequence(query=X, memory=7), "memory"),
    ],
    ids=["surrogate", "text", "memory_text", "memory"],
)
def test_a_text_without_a_form_is_an_error_in_its_position(attend_many, target, bad, field, position):
    """A text or memory that no message can hold yields InvalidRequest of its field; the stream goes on, and ends."""
    sequences = [X] * (BATCH_SEQUENCES + 2)
    sequences[position] = bad
    answers = list(attend_many(target, "any", sequences, return_exceptions=True))
    assert len(answers) == len(sequences)
    (error,) = (each for each in answers if isinstance(each, Exception))
    assert answers.index(error) == position
    assert isinstance(error, InvalidRequest)
    assert error.field == f"inputs[0].{field}"


@pytest.mark.parametrize("position", [1, BATCH_SEQUENCES - 1])
def test_an_error_of_an_array_is_raised_in_its_position(attend_many, target, position):
    """The error of an array-like's own conversion reaches the caller after the answers before it."""
    sequences = [X] * BATCH_SEQUENCES
    sequences[position] = Tensor()
    answers = attend_many(target, "any", sequences)
    assert [next(answers).output.shape for _ in range(position)] == [X.shape] * position
    with pytest.raises(LookupError, match="the device is gone"):
        next(answers)


@pytest.mark.parametrize("drawn", [0, 1, BATCH_SEQUENCES])
@pytest.mark.parametrize("error", [OSError, CancelledError, asyncio.CancelledError])
def test_an_error_of_the_source_is_raised(attend_many, target, drawn, error):
    """What the source raises reaches the caller after the answers to all sequences before it."""

    def source():
        yield from [X] * drawn
        raise error("the disk is gone")

    answers = attend_many(target, "any", source())
    assert [next(answers).output.shape for _ in range(drawn)] == [X.shape] * drawn
    with pytest.raises(error, match="the disk is gone"):
        next(answers)


def test_a_blocking_source_may_exit(target):
    """SystemExit of a source, which runs in a thread of the client, reaches the caller."""

    def source():
        yield X
        raise SystemExit(3)

    with AttentionClient(target) as client:
        answers = client.attend_many("any", source())
        assert next(answers).output.shape == X.shape
        with pytest.raises(SystemExit):
            next(answers)


def state_of(seconds=60):
    """The rules of a stream without a stream: its state, and the flow of its steps."""
    state = StreamState(StreamPlan(None, None, seconds, return_exceptions=False), nullcontext())
    return state, state.flow()


def answered(state, id_):
    """A batch of one sequence that is in flight, and its answer."""
    state.sent(Batch(id_, [X], pb.AttendRequest(inputs=[pb.Sequence()])))
    return pb.AttendStreamResponse(id=str(id_), response=pb.AttendResponse(results=[pb.Result()]))


def test_only_an_answer_has_a_deadline():
    """Without a message in flight the source is slow, and the stream waits on; with one the server is late."""
    state, flow = state_of(5)
    assert next(flow) == Receive(5)
    assert flow.send(None) == Receive(5)
    answer = answered(state, 0)
    assert isinstance(flow.send(answer), Deliver)
    assert isinstance(next(flow), Release)
    assert next(flow) == Receive(5)
    assert flow.send(None) == Receive(5)
    answered(state, 1)
    with pytest.raises(DeadlineExceeded, match="no answer came for 5 seconds"):
        flow.send(None)


def test_waits_between_streams_double():
    """Each break without an answer doubles the wait, within the stream's timeout; an answer resets it."""
    state, flow = state_of(0.3)
    next(flow)
    waits = []
    for failure in range(2 * MAX_FAILURES - 2):
        if failure == MAX_FAILURES - 1:
            assert isinstance(flow.send(answered(state, 0)), Deliver)
            assert isinstance(next(flow), Release)
            next(flow)
        waits.append(flow.send(Unavailable("gone")).delay)
        next(flow)
    assert waits == [0.1, 0.2, 0.3, 0.3] * 2
    with pytest.raises(Unavailable, match="gone"):
        flow.send(Unavailable("gone"))


def test_the_server_names_the_wait():
    """A wait that the server names goes before the client's own; an error that no retry helps is raised at once."""
    _, flow = state_of()
    next(flow)
    full = Unavailable("full")
    full.retry_after = 7.5
    assert flow.send(full) == Reconnect(7.5)
    next(flow)
    with pytest.raises(InvalidRequest):
        flow.send(InvalidRequest("bad"))


def test_answers_are_delivered_in_order_and_once():
    """Answers in any order are delivered in the order of the sequences; a second answer to one is dropped."""
    state, flow = state_of()
    first, second = answered(state, 0), answered(state, 1)
    assert isinstance(next(flow), Receive)
    assert isinstance(flow.send(second), Receive)
    assert isinstance(flow.send(second), Receive)
    assert [batch.id for batch in state.unanswered()] == [0]
    assert [type(step) for step in (flow.send(first), *islice(flow, 3))] == [Deliver, Release] * 2
    assert isinstance(next(flow), Receive)
    assert isinstance(flow.send(first), Receive)
    with pytest.raises(StopIteration):
        flow.send(Batch(2))


def test_a_server_that_does_not_answer(attend_many, target, service):
    """A message without an answer within the timeout raises DeadlineExceeded."""
    service.may_answer.clear()
    try:
        with pytest.raises(DeadlineExceeded):
            next(attend_many(target, "any", [X], timeout=0.2))
    finally:
        service.may_answer.set()


def test_the_window():
    """There is room by count and by bytes; a message larger than the window is alone in it."""
    window = Window(2, 10)
    assert window.has_room(99)
    window.enter(99)
    assert not window.has_room(0)
    window.leave(99)
    window.enter(4)
    assert window.has_room(6)
    assert not window.has_room(7)
    window.enter(6)
    assert not window.has_room(0)
    window.leave(4)
    assert window.has_room(4)
    assert not window.has_room(5)
