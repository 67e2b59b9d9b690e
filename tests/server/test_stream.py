"""AttendStream on a real server: many requests in flight, matched by id, each failing by itself."""

import asyncio
import itertools
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from attention_client import AsyncAttentionClient, AttentionClient, InvalidRequest, NotFound, OutputSpec, Sequence
from attention_client.streaming.batcher import BATCH_SEQUENCES
from attention_proto import codec
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceStub
from attention_server.domain.call import CallContext
from attention_server.grpc import stream
from attention_server.grpc.stream import IN_FLIGHT, STREAMS, StreamProtocol, StreamSession
from attention_server.telemetry.observer import Observer
from attention_server.transport.threads import Threads
from serving import HANG, start_server, wait_until

pytestmark = pytest.mark.both_grpc_servers

RNG = np.random.default_rng(0)


def sequences(count, longest=40):
    return [RNG.normal(size=(int(length), 8)).astype(np.float32) for length in RNG.integers(1, longest, count)]


def message(id_, query, model="dot"):
    request = pb.AttendRequest(model=model, inputs=[pb.Sequence(query=codec.encode(query))])
    return pb.AttendStreamRequest(id=id_, request=request)


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.grpc) as channel:
        yield AttentionServiceStub(channel)


class Awaiting:
    """An asyncio client, asked like a blocking one from any thread; its loop runs in a thread of its own."""

    def __init__(self, target):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.client = self.run(self.made(target))

    async def made(self, target):
        return AsyncAttentionClient(target)

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(HANG)

    def attend(self, *args, **options):
        return self.run(self.client.attend(*args, **options))

    def create_memory(self, *args, **options):
        return self.run(self.client.create_memory(*args, **options))

    def delete_memory(self, *args, **options):
        return self.run(self.client.delete_memory(*args, **options))

    def attend_many(self, *args, **options):
        answers = self.client.attend_many(*args, **options)

        async def following():
            return await anext(answers, None)

        try:
            while (answer := self.run(following())) is not None:
                yield answer
        finally:
            self.run(answers.aclose())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.run(self.client.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture(params=[AttentionClient, Awaiting], ids=["blocking", "asyncio"])
def connected(request):
    """A client, blocking and by asyncio."""
    return request.param


@pytest.fixture
def client(server, connected):
    with connected(server.grpc) as client:
        yield client


def test_answers_are_those_of_attend(server, client):
    """A stream's results equal those of single calls bit for bit, in the order of the sequences."""
    given = sequences(300)
    streamed = list(client.attend_many("dot", given, outputs=["output", "weights"]))
    assert len(streamed) == len(given)
    for query, result in zip(given, streamed, strict=True):
        alone = client.attend("dot", query=query, outputs=["output", "weights"])
        assert np.array_equal(result.output, alone.output)
        assert np.array_equal(result.weights, alone.weights)


def test_ids_match_answers(stub):
    """Each answer carries the id of its request, in any order."""
    given = dict(zip(map(str, range(100)), sequences(100), strict=True))
    answers = {each.id: each.response for each in stub.AttendStream(message(*item) for item in given.items())}
    assert answers.keys() == given.keys()
    for id_, query in given.items():
        assert tuple(answers[id_].results[0].outputs[0].tensor.shape) == query.shape


def test_an_error_is_its_requests_alone(stub):
    """A bad request is answered by an error with its field; the stream goes on."""
    good, bad = np.ones((2, 8), np.float32), np.full((2, 8), np.nan, np.float32)
    messages = [
        message("a", good),
        message("b", bad),
        message("", good),
        message("d", good, "nobody"),
        message("e", good),
    ]
    answers = {each.id: each for each in stub.AttendStream(iter(messages))}
    assert {id_ for id_, each in answers.items() if each.HasField("response")} == {"a", "e"}
    assert "inputs[0].query" in str(answers["b"].error.details)
    assert answers["d"].error.code == grpc.StatusCode.NOT_FOUND.value[0]
    assert "id" in answers[""].error.message


def test_an_empty_stream_is_answered_by_none(stub, client):
    """No request, no answer, no error."""
    assert list(stub.AttendStream(iter([]))) == []
    assert list(client.attend_many("dot", [])) == []


def test_a_caller_who_does_not_read_is_not_read_for_ever(stub):
    """The server reads a bounded number of requests of a caller that does not read."""
    sent = itertools.count()
    query = np.ones((200, 400), np.float32)  # 320 kB there, and as much back: the network holds few
    last = 0

    def endless():
        nonlocal last
        for last in sent:
            yield message(str(last), query)

    call = stub.AttendStream(endless())
    next(call)
    settled = threading.Event()
    seen = -1
    while seen != last:  # until a second passes without a message
        seen = last
        settled.wait(1)
    assert last < 8 * IN_FLIGHT
    call.cancel()


@pytest.mark.native_grpc("its core frees a cancelled stream's place a moment later")
def test_streams_are_bounded_and_do_not_leak(server, stub):
    """More streams than there may be are refused at once; once a stream ends, a new one is accepted."""
    query = np.ones((1, 8), np.float32)
    doors = [threading.Event() for _ in range(STREAMS)]

    def one(door):
        yield message("a", query)
        door.wait(HANG)

    calls = [stub.AttendStream(one(door)) for door in doors]
    for call in calls:
        next(call)
    with pytest.raises(grpc.RpcError) as refused:
        list(stub.AttendStream(iter([message("b", query)])))
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    for call in calls[::2]:
        call.cancel()
    for door in doors:
        door.set()
    for call in calls[1::2]:
        assert list(call) == []

    def answered():
        try:
            return len(list(stub.AttendStream(iter([message("c", query)])))) == 1
        except grpc.RpcError:
            return False

    wait_until(answered)


class MessageStream:
    """A stream's ends in memory: two times three messages, the second three behind a gate, and the sent answers."""

    def __init__(self):
        self.call = self
        self.sent = []
        self.reached, self.gate = asyncio.Event(), asyncio.Event()
        self._messages = iter([message(id_, np.ones((1, 8), np.float32)) for id_ in "abcdef"])

    async def next(self):
        found = next(self._messages, None)
        if found is not None and found.id == "d":
            self.reached.set()
            await self.gate.wait()
        return None if found is None else (found, found.ByteSize())

    def write(self, content, on_sent):
        self.sent.append(content)
        on_sent()


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("size", [0, 1000])
def test_nothing_stays_counted(size, in_order, monkeypatch):
    """When the answers of a stream are sent, in whichever order, as many requests as before fit into its bounds."""
    monkeypatch.setattr(stream, "IN_FLIGHT_BYTES", 3 * message("a", np.ones((1, 8), np.float32)).ByteSize())
    monkeypatch.setattr(stream, "ANSWER_BYTES", 3 * size + 500)
    futures = []
    submitted = asyncio.Semaphore(0)

    async def submit(message, context, on_admitted):
        on_admitted()
        futures.append(Future())
        submitted.release()
        return futures[-1], lambda _: message.id.encode()

    async def run():
        messages = MessageStream()
        protocol = StreamProtocol(submit, None, in_order)
        session = StreamSession(messages, protocol, CallContext("test"), Observer(), Threads(1, "test"))
        running = asyncio.create_task(session.run())
        for begin in (0, 3):
            for _ in range(3):
                await asyncio.wait_for(submitted.acquire(), HANG)
            for i, place in enumerate((1, 0, 2)):
                futures[begin + place].set_result(SimpleNamespace(size=size))
                assert len(messages.sent) == begin + ([0, 2, 3] if in_order else [1, 2, 3])[i]
            messages.gate.set()
        await running
        return b"".join(messages.sent)

    assert asyncio.run(run()) == (b"abcdef" if in_order else b"bacedf")


@pytest.mark.parametrize("in_order", [True, False])
def test_a_large_answer_is_serialized_in_a_thread(in_order, monkeypatch):
    """The loop serializes small answers alone; a small answer overtakes a large one only where order is free."""
    monkeypatch.setattr(stream, "INLINE_BYTES", 100)
    threads, release = Threads(1, "test"), threading.Event()
    serialized_by = {}

    def serialize(id_):
        if id_ == "a":
            assert release.wait(HANG)
        serialized_by[id_] = threading.current_thread().name
        return id_.encode()

    async def submit(message, context, on_admitted):
        on_admitted()
        future = Future()
        future.set_result(SimpleNamespace(size=101 if message.id == "a" else 100))
        return future, lambda _: serialize(message.id)

    async def run():
        messages = MessageStream()
        session = StreamSession(
            messages, StreamProtocol(submit, None, in_order), CallContext("test"), Observer(), threads
        )
        running = asyncio.create_task(session.run())
        await messages.reached.wait()
        assert messages.sent == ([] if in_order else [b"b", b"c"])
        release.set()
        messages.gate.set()
        await running
        return messages.sent

    assert sorted(asyncio.run(run())) == [b"a", b"b", b"c", b"d", b"e", b"f"]
    threads.close()
    assert serialized_by.pop("a").startswith("test")
    assert set(serialized_by.values()) == {"MainThread"}


def test_a_large_answer_that_cannot_be_serialized_is_the_error_of_its_message(monkeypatch):
    """A fault while a large answer is serialized, or a lack of threads, fails that message; the stream goes on."""
    monkeypatch.setattr(stream, "INLINE_BYTES", 100)
    threads, release = Threads(1, "test"), threading.Event()

    async def submit(message, context, on_admitted):
        on_admitted()
        future = Future()
        future.set_result(SimpleNamespace(size=101 if message.id in "ab" else 100))

        def serialize(_):
            if message.id == "a":
                assert release.wait(HANG)
                raise ValueError
            return message.id.encode()

        return future, serialize

    async def run():
        messages = MessageStream()
        protocol = StreamProtocol(submit, lambda id_, error, _: f"{id_}:{type(error).__name__}".encode(), True)
        session = StreamSession(messages, protocol, CallContext("test"), Observer(), threads)
        running = asyncio.create_task(session.run())
        await messages.reached.wait()
        release.set()
        messages.gate.set()
        await running
        return messages.sent

    assert asyncio.run(run()) == [b"a:ValueError", b"b:Full", b"c", b"d", b"e", b"f"]
    threads.close()


def test_a_stop_answers_what_was_taken_and_ends_streams(repository):
    """A server that stops does not wait for idle streams: the callers read UNAVAILABLE."""
    door = threading.Event()
    with start_server(repository, "--grace", 10 * HANG) as server, grpc.insecure_channel(server.grpc) as channel:

        def messages():
            yield message("a", np.ones((1, 8), np.float32))
            door.wait(HANG)

        call = AttentionServiceStub(channel).AttendStream(messages())
        assert next(call).HasField("response")
        server.process.terminate()
        with pytest.raises(grpc.RpcError) as ended:
            list(call)
        assert server.process.wait(HANG) == 0  # long before the grace ends
        door.set()
        assert ended.value.code() == grpc.StatusCode.UNAVAILABLE


def test_errors_in_place_and_raised(client):
    """A bad sequence is raised in its turn, or yielded in its place; its neighbours in the message are answered."""
    good = sequences(40)
    mixed = [*good[:20], np.full((2, 8), np.nan, np.float32), *good[20:]]
    answers = list(client.attend_many("dot", mixed, return_exceptions=True))
    assert [position for position, each in enumerate(answers) if isinstance(each, InvalidRequest)] == [20]
    assert all(
        np.array_equal(each.output, client.attend("dot", query=query).output)
        for each, query in zip(answers[21:], mixed[21:], strict=True)
    )
    given = client.attend_many("dot", mixed)
    assert len(list(itertools.islice(given, 20))) == 20
    with pytest.raises(InvalidRequest):
        next(given)
    with pytest.raises(NotFound):
        next(client.attend_many("nobody", good))


def test_outputs_that_are_there_but_once(client):
    """An iterator of outputs is read once, and holds for every message, and for sequences sent one by one."""
    bad = np.full((2, 8), np.nan, np.float32)
    spec = OutputSpec("weights", rows=(row for row in [1]))
    answers = list(
        client.attend_many(
            "dot", [*[np.ones((3, 8), np.float32)] * 70, bad], outputs=iter([spec]), return_exceptions=True
        )
    )
    assert {each.weights.shape for each in answers[:70]} == {(1, 1, 3)}
    assert isinstance(answers[70], InvalidRequest)
    with pytest.raises(InvalidRequest, match=r"write \['weights'\]"):
        next(client.attend_many("dot", [bad], outputs="weights"))


def test_a_source_that_fails_raises_after_what_came_before(client):
    """An exception of the caller's own iterable is raised in its place."""

    def failing():
        yield from sequences(3)
        raise RuntimeError("the source")

    answers = client.attend_many("dot", failing())
    assert len(list(itertools.islice(answers, 3))) == 3
    with pytest.raises(RuntimeError, match="the source"):
        next(answers)


def test_an_asynchronous_source(server):
    """By asyncio sequences may come from an asynchronous iterable, slowly; results come meanwhile."""
    given = sequences(BATCH_SEQUENCES + 4)
    first_is_there = asyncio.Event()

    async def source():
        for query in given[:BATCH_SEQUENCES]:  # one message
            yield query
        await first_is_there.wait()
        for query in given[BATCH_SEQUENCES:]:
            yield query
        raise RuntimeError("the source")

    found = []

    async def answered():
        async with AsyncAttentionClient(server.grpc) as client:
            async for answer in client.attend_many("dot", source()):
                found.append(answer.output)
                first_is_there.set()

    with pytest.raises(RuntimeError, match="the source"):
        asyncio.run(asyncio.wait_for(answered(), HANG))
    assert [each.shape for each in found] == [query.shape for query in given]


def test_a_caller_who_stops_early_leaves_nothing(client):
    """To close the iterator ends the stream, its threads and its draws from an endless source."""
    before = threading.active_count()
    answers = client.attend_many("dot", (np.ones((1, 8), np.float32) for _ in itertools.count()))
    next(answers)
    answers.close()
    wait_until(lambda: threading.active_count() <= before + 1)  # gRPC keeps one of its own for the channel


def test_memories_are_created_again_on_a_stream(client):
    """A memory that the server has lost in mid-stream is created again, as for a single call."""
    memory = client.create_memory("dot", key=np.ones((3, 8), np.float32))
    client.delete_memory(memory)
    queries = sequences(5)
    answers = list(client.attend_many("dot", [Sequence(query=query, memory=memory) for query in queries]))
    assert [each.output.shape for each in answers] == [query.shape for query in queries]


def test_many_streams_at_once(client):
    """Streams of several callers do not mix."""
    sets = [sequences(100) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda given: list(client.attend_many("dot", given)), sets))
    for given, answers in zip(sets, found, strict=True):
        assert [each.output.shape for each in answers] == [each.shape for each in given]


def test_a_server_that_is_killed_in_mid_stream(dot_only, connected):
    """When one of two servers is killed, its unanswered messages are sent to the second: none is lost or doubled."""
    given = sequences(1500, 20)
    with start_server(dot_only) as stays, start_server(dot_only) as goes:
        with connected(f"{stays.grpc},{goes.grpc}") as client:
            streams = [client.attend_many("dot", given) for _ in range(4)]  # balanced: some are held by each
            firsts = [next(each) for each in streams]
            goes.process.kill()
            assert all(first.output.shape == given[0].shape for first in firsts)
            for each in streams:
                assert [answer.output.shape for answer in each] == [query.shape for query in given[1:]]
        goes.process.wait()
        goes.process.returncode = 0  # killed on purpose
