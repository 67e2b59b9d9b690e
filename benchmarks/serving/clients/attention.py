"""Load on attention.v1 over gRPC.

Requests are encoded before the clock starts, as for the peers, and answers are decoded into arrays. `client` is the
shipped client's `attend_many`, which encodes its messages during the measurement.
"""

import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import grpc
import numpy as np
from attention_client import AttendResult, AttentionClient, OutputSpec, TopK
from attention_client import Sequence as Item
from attention_client.inputs import Output
from attention_client.streaming.batcher import Batcher
from attention_client.wire.channel import OPTIONS, uri
from attention_client.wire.request import attend_request, packed_request
from attention_client.wire.response import read
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceStub

from benchmarks.serving.block import Vectors, memory, sequences
from benchmarks.serving.clients.loop import (
    Load,
    Stopwatch,
    at_once,
    given_load,
    measurement,
    now,
    one_by_one,
    print_measurement,
    rate,
)
from benchmarks.serving.reference import CHECKED, TOP, Reference

PACK = 16  # sequences of a ragged call; a streamed message has the client's batch size
STREAM_MESSAGES = 8  # messages in flight on a stream
ASKED: dict[str, tuple[Output, ...]] = {
    "output": ("output",),
    "weights": ("output", "weights"),
    "top": ("output", OutputSpec("weights", reduce="mean", top_k=TOP, data_type="FP16")),
}
OVERLOAD = 2  # times the capacity
SETTLES = 8.0  # seconds of overload before the measurement
# The shipped client retries refused calls; here refusals are counted.
NO_RETRIES = (*(option for option in OPTIONS if option[0] != "grpc.enable_retries"), ("grpc.enable_retries", 0))


def main() -> None:
    """Measure one mode."""
    load = given_load()
    with AttentionClient(load.target) as client:
        if load.mode in {"handle", "handle streamed", "sent"}:
            model, items, name = "cross", steps(client, load), "memory"
        else:
            model, items, name = "block", list(sequences(load.lengths)), "output"
        check(client.attend_batch(model, items[:CHECKED], outputs=ASKED[load.outputs]), load, name)
        print_measurement(measure(client, model, items, load) if load.seconds else {})


def steps(client: AttentionClient, load: Load) -> list[Item | Vectors]:
    """Return steps of a decoder, a row each, with one memory: by handle, or sent with each step."""
    rows = sequences(load.lengths)
    if load.mode == "sent":
        return [Item(query=row, key=memory()) for row in rows[:CHECKED]]
    handle = client.create_memory("cross", key=memory())
    return [Item(query=row, memory=handle) for row in rows]


def check(results: Sequence[AttendResult], load: Load, name: str) -> None:
    reference = Reference(Path(load.reference), load.lengths)
    for i, result in enumerate(results):
        answer = {name: result.output}
        if load.outputs == "weights":
            answer["weights"] = result.weights
        elif load.outputs == "top":
            top = result["weights"]
            assert isinstance(top, TopK)
            answer |= {"values": top.values, "indices": top.indices}
        reference.check(i, answer)


def measure(client: AttentionClient, model: str, items: list[Item | Vectors], load: Load) -> dict[str, float]:
    """Measure one mode of sending sequences."""
    if load.mode == "client":
        return attend_many(client, model, items, load)
    if load.mode.endswith("streamed"):
        batcher = Batcher(lambda batch: packed_request(model, batch, ASKED[load.outputs], 0, False))
        full = [batcher.add(item) for item in items]
        return streamed([batch.request for batch in (*full, *batcher.rest()) if batch and batch.request], load)
    together = PACK if load.mode == "ragged" else 1
    packs = [items[i : i + together] for i in range(0, len(items), together)]
    requests = [attend_request(model, pack, ASKED[load.outputs], 0, False) for pack in packs]
    if load.mode == "overload":
        return asyncio.run(overload(requests, load))
    if load.concurrency == 1:
        return blocking(requests, load)
    return asyncio.run(concurrent(requests, load, together))


def blocking(requests: list[pb.AttendRequest], load: Load) -> dict[str, float]:
    with grpc.insecure_channel(uri(load.target), OPTIONS) as channel:
        attend = AttentionServiceStub(channel).Attend

        def ask(i: int) -> None:
            request = requests[i % len(requests)]
            read(request, attend(request, timeout=30))

        return one_by_one(ask, load.seconds)


async def concurrent(requests: list[pb.AttendRequest], load: Load, together: int) -> dict[str, float]:
    async with grpc.aio.insecure_channel(uri(load.target), OPTIONS) as channel:
        attend = AttentionServiceStub(channel).Attend

        async def ask(i: int) -> None:
            request = requests[i % len(requests)]
            read(request, await attend(request, timeout=30))

        return await at_once(ask, max(1, load.concurrency // together), load.seconds, together)


def streamed(requests: list[pb.AttendRequest], load: Load) -> dict[str, float]:
    """Send messages over one stream, with `STREAM_MESSAGES` in flight."""
    room = threading.Semaphore(STREAM_MESSAGES)
    until = now() + 1.2 * load.seconds

    def messages() -> Iterator[pb.AttendStreamRequest]:
        for number in itertools.count():
            room.acquire()
            if now() >= until:
                return
            yield pb.AttendStreamRequest(id=str(number), request=requests[number % len(requests)])

    with grpc.insecure_channel(uri(load.target), OPTIONS) as channel:
        watch, answered = None, 0
        for answer in AttentionServiceStub(channel).AttendStream(messages(), timeout=load.seconds + 30):
            room.release()
            assert answer.HasField("response"), answer.error
            read(requests[int(answer.id) % len(requests)], answer.response)
            if watch:
                answered += len(answer.response.results)
            elif now() >= until - load.seconds:
                watch = Stopwatch()
        assert watch
        return rate(answered, watch)


def attend_many(client: AttentionClient, model: str, items: list[Item | Vectors], load: Load) -> dict[str, float]:
    """Send sequences by the shipped client's stream."""
    until = now() + 1.2 * load.seconds
    source = itertools.takewhile(lambda _: now() < until, itertools.cycle(items))
    watch, answered = None, 0
    for _ in client.attend_many(model, source, outputs=ASKED[load.outputs]):
        if watch:
            answered += 1
        elif now() >= until - load.seconds:
            watch = Stopwatch()
    assert watch
    return rate(answered, watch)


async def recovered(ask: Callable[[int], Awaitable[None]], callers: int) -> None:
    """Wait until that many concurrent calls succeed: after an overload, admission is reduced for up to a minute."""
    until = now() + 90
    while any(await asyncio.gather(*map(ask, range(callers)), return_exceptions=True)):
        assert now() < until, "it does not recover"
        await asyncio.sleep(1)


async def overload(requests: list[pb.AttendRequest], load: Load) -> dict[str, float]:
    """Measure one caller, then the capacity, then an open loop at twice the capacity.

    The open loop runs for `SETTLES` seconds before the measurement, which is of sustained overload and not of a burst.
    """
    async with grpc.aio.insecure_channel(uri(load.target), NO_RETRIES) as channel:
        attend = AttentionServiceStub(channel).Attend

        async def ask(i: int) -> None:
            request = requests[i % len(requests)]
            read(request, await attend(request, timeout=30))

        await recovered(ask, load.concurrency)
        unloaded = await at_once(ask, 1, load.seconds)
        peak = await at_once(ask, load.concurrency, load.seconds)
        admitted, refused, calls = [], [], []
        counted = False

        async def call(i: int) -> None:
            took = None
            start = now()
            try:
                await ask(i)
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise
                took = refused
            else:
                took = admitted
            if counted:
                took.append(now() - start)

        each = 1 / (OVERLOAD * peak["rate"])
        watch = begun = Stopwatch()
        for i in range(int((SETTLES + 2 * load.seconds) / each)):
            await asyncio.sleep(max(0.0, i * each - begun.seconds))
            if not counted and begun.seconds >= SETTLES:
                counted, watch = True, Stopwatch()
            calls.append(asyncio.create_task(call(i)))
        offered = len(calls) / begun.seconds
        good = measurement(admitted, watch)
        refusals = len(refused) / watch.seconds
        await asyncio.gather(*calls)
        await recovered(ask, load.concurrency)  # otherwise the next contender's calls would be refused
    return good | {
        "peak": peak["rate"],
        "unloaded_p99": unloaded["p99"],
        "offered": offered,
        "refused": refusals,
        "refused_p99": float(np.percentile(refused, 99)) * 1e3 if refused else 0.0,
    }


if __name__ == "__main__":
    main()
