"""A stream alone, with calls that break when they are told to: what no real network does on request."""

import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from attention_client.streaming.blocking import Stream
from attention_proto.attention.v1 import attention_pb2 as pb


class Broken(grpc.RpcError):
    """A call that ended because nobody answers any more."""

    def code(self):
        return grpc.StatusCode.UNAVAILABLE

    def details(self):
        return "gone"

    def trailing_metadata(self):
        return ()


class Call:
    """A call whose messages are taken as gRPC takes them, in a thread, and answered until it breaks."""

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
def test_what_is_drawn_after_a_break_is_sent_by_the_new_stream(code, attempt, monkeypatch):
    """A stream that broke while the source paused leaves the rest, the very last too, to the one after it."""
    monkeypatch.setattr(Broken, "code", lambda _: code)
    calls = queue.SimpleQueue()
    pause = threading.Event()

    def opened(messages):
        call = Call(messages)
        calls.put(call)
        return call

    def source():
        assert pause.wait(30)
        yield "the last"

    stream = Stream(opened, lambda items: pb.AttendRequest(inputs=[pb.Sequence(text=each) for each in items]), None, 5)
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(lambda: list(stream.answers(source())))
        first = calls.get(timeout=10)
        first.cancel()
        second = calls.get(timeout=10)
        pause.set()
        assert len(answers.result(20)) == 1
    for call in (first, second):
        call.taker.join(10)
        assert not call.taker.is_alive()
