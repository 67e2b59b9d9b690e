"""Faults under load: `python -m tests.trials.chaos --rounds 5`.

While well-behaved callers ask, and every answer is compared with the right one, further callers are slow, leave, break
off and die; and so do servers. After each fault stands the one check of `Subject`.
"""

import argparse
import http.client
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import grpc
import numpy as np
import requests
from attention_client import AttentionClient
from attention_proto.attention.v1 import attention_pb2 as pb
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.trials import scorecard
from tests.trials.chaos_servers import kill_of_one_of_two, stop_under_load, swaps
from tests.trials.load import ENOUGH, ask, call_all, sequence_of, under_load
from tests.trials.proxy import line
from tests.trials.subject import Good, Subject, Wrong, under_trial

ATTEND = "/attention.v1.AttentionService/Attend"
STREAM = "/attention.v1.AttentionService/AttendStream"
# The memory that glibc keeps of the answers that slow readers leave, in arenas of many threads: 310 MiB after 24
# rounds, and no more; 95 MiB where it has to give back all above 1 MiB (see docs/scorecard.md).
MOST_MIB = 400.0


def connect(subject: Subject) -> socket.socket:
    host, port = subject.server.rest.split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def post(good: Good, subject: Subject, *more: str) -> bytes:
    """Return a whole request of HTTP."""
    body = str(good.document()).replace("'", '"').encode()
    head = [f"POST /v1/models/{good.model}/versions/{good.version}:attend HTTP/1.1", "host: localhost", *more]
    return "\r\n".join([*head, f"content-length: {len(body)}", "", ""]).encode() + body


# --- callers ---------------------------------------------------------------------------------------------------------


def slow_writers(subject: Subject, rng: random.Random) -> None:
    """Callers that send a byte at a time, over both protocols, get right answers."""
    good = subject.goods[0]

    def over_http() -> None:
        with connect(subject) as peer:
            for byte in post(good, subject, "connection: close"):
                peer.sendall(bytes([byte]))
            received = b""
            while more := peer.recv(65536):
                received += more
        if not received.startswith(b"HTTP/1.1 200"):
            raise Wrong(f"a slow writer had {received[:200]!r}")

    call_all([over_http] * 4)
    with line(subject.server.grpc, piece=1, pause=0.0) as slow, AttentionClient(slow.address, timeout=60) as client:
        for each in subject.goods[:3]:
            ask(client, each)


def one_byte_chunks(subject: Subject, rng: random.Random) -> None:
    """A body in chunks of a byte is a body."""
    for good in subject.goods[::6]:
        connection = http.client.HTTPConnection(subject.server.rest, timeout=60)
        body = str(good.document()).replace("'", '"').encode()
        path = f"/v1/models/{good.model}/versions/{good.version}:attend"
        connection.request("POST", path, iter([body[i : i + 1] for i in range(len(body))]), encode_chunked=True)
        response = connection.getresponse()
        if response.status != 200:
            raise Wrong(f"chunks of a byte had {response.status} {response.read()[:200]!r}")
        connection.close()


def slow_readers(subject: Subject, rng: random.Random) -> None:
    """Callers that do not read answers delay no further caller."""
    rows = ",".join(["[1.0]"] * 900)
    body = f'{{"query": [{rows}], "outputs": ["weights"]}}'.encode()
    head = f"POST /v1/models/dot:attend HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    large = pb.AttendRequest(
        model="dot",
        inputs=[pb.Sequence(query=pb.Tensor(data_type=pb.DATA_TYPE_FP32, shape=[900, 1], data=bytes(3600)))],
        outputs=[pb.OutputSpec(name="weights")],
    )
    stopping = threading.Event()

    def many() -> Iterator[bytes]:
        for i in range(40):
            yield pb.AttendStreamRequest(id=str(i), request=large).SerializeToString()
        stopping.wait(60)

    with ExitStack() as stack:
        for _ in range(8):
            peer = stack.enter_context(connect(subject))
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            peer.sendall(head + body)
        channel = stack.enter_context(
            grpc.insecure_channel(subject.server.grpc, [("grpc.use_local_subchannel_pool", 1)])
        )
        calls = [channel.stream_stream(STREAM)(many(), timeout=60) for _ in range(4)]
        with under_load(subject.server.grpc, subject.goods) as load:
            load.wait_for(ENOUGH)
        stopping.set()
        for call in calls:
            call.cancel()


def churn(subject: Subject, rng: random.Random) -> None:
    """Connections that come and go, with and without a word, or with a reset."""
    good = subject.goods[0]
    for i in range(300):
        peer = connect(subject)
        if i % 3:
            peer.sendall(post(good, subject)[: rng.randrange(200)])
        if i % 2:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
    host, port = subject.server.grpc.split(":")
    for i in range(100):
        peer = socket.create_connection((host, int(port)), timeout=60)
        peer.sendall((b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rng.randbytes(rng.randrange(100)))[: rng.randrange(120)])
        if i % 2:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
    for _ in range(30):
        with AttentionClient(subject.server.grpc, timeout=60) as client:
            ask(client, good)


def callers_who_leave(subject: Subject, rng: random.Random) -> None:
    """Calls that are cancelled, and connections closed, before, during and after the computation."""
    with grpc.insecure_channel(subject.server.grpc, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        attend = channel.unary_unary(ATTEND)
        for _ in range(300):
            futures = [
                attend.future(good.message().SerializeToString(), timeout=60)
                for good in rng.choices(subject.goods, k=3)
            ]
            if rng.randrange(2):
                threading.Event().wait(rng.random() * 0.004)
            for future in futures:
                future.cancel()
    for _ in range(100):
        peer = connect(subject)
        peer.sendall(post(rng.choice(subject.goods), subject))
        threading.Event().wait(rng.random() * 0.004)
        peer.close()


def deadline_storm(subject: Subject, rng: random.Random) -> None:
    """Thousands of calls that have a few milliseconds: an answer is right, and every error has this code."""
    with grpc.insecure_channel(subject.server.grpc, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        attend = channel.unary_unary(ATTEND)
        for _ in range(40):
            sent = [rng.choice(subject.goods) for _ in range(25)]
            futures = [attend.future(each.message().SerializeToString(), timeout=rng.random() * 0.02) for each in sent]
            for future in futures:
                code = future.code().name
                if code not in ("OK", "DEADLINE_EXCEEDED", "UNAVAILABLE"):
                    raise Wrong(f"a deadline had {code} {future.details()}")
    for _ in range(100):
        headers = {"x-request-timeout": f"{rng.random() * 0.01:f}"}
        good = rng.choice(subject.goods)
        url = f"{subject.server.url}/v1/models/{good.model}/versions/{good.version}:attend"
        status = requests.post(url, json=good.document(), headers=headers, timeout=60).status_code
        if status not in (200, 504, 503):
            raise Wrong(f"a deadline had {status}")


def broken_streams(subject: Subject, rng: random.Random) -> None:
    """Streams on a line that breaks midway go on at the same place: all answers come, in order, and right."""
    good = subject.goods[4]
    with line(subject.server.grpc) as fragile, AttentionClient(fragile.address, timeout=60) as client:
        count = cuts = 0
        sequences = (sequence_of(good) for _ in range(600))
        for result in client.attend_many(good.model, sequences, outputs=list(good.outputs), version=good.version):
            good.compare({name: result[name] for name in good.outputs}, "stream")
            count += 1
            if count in (100, 250, 400):
                cuts += fragile.cut()
        if count != 600 or not cuts:
            raise Wrong(f"{count} of 600 answers came, over {cuts} cuts")


def overload(subject: Subject, rng: random.Random) -> None:
    """Of more than can be queued some is refused, none wrongly, and liveness answers throughout."""
    stopping = threading.Event()
    failed: list[str] = []
    asked = 0

    def alive() -> None:
        nonlocal asked
        with grpc.insecure_channel(subject.server.grpc, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            while not stopping.is_set():
                try:
                    status = requests.get(f"{subject.server.url}/healthz", timeout=30).status_code
                    if status != 200 or check(health_pb2.HealthCheckRequest(), timeout=30).status != 1:
                        failed.append(f"/healthz {status}")
                except (requests.RequestException, grpc.RpcError) as error:
                    failed.append(repr(error))
                asked += 1

    def storm() -> None:
        with grpc.insecure_channel(subject.server.grpc, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            attend = channel.unary_unary(ATTEND)
            for _ in range(4):
                futures = [attend.future(large, timeout=60) for _ in range(100)]
                codes = {future.code().name for future in futures}
                if not codes <= {"OK", "UNAVAILABLE"}:
                    failed.append(f"overload had {codes}")

    query = np.ones((300, 8), np.float32)
    tensor = pb.Tensor(data_type=pb.DATA_TYPE_FP32, shape=query.shape, data=query.tobytes())
    large = pb.AttendRequest(model="dot", inputs=[pb.Sequence(query=tensor)]).SerializeToString()
    watcher = threading.Thread(target=alive)
    watcher.start()
    call_all([storm] * 3)
    stopping.set()
    watcher.join()
    if failed or not asked:
        raise Wrong(f"liveness, asked {asked} times: {failed[:3]}")


CALLERS: tuple[Callable[[Subject, random.Random], None], ...] = (
    slow_writers,
    one_byte_chunks,
    slow_readers,
    churn,
    callers_who_leave,
    deadline_storm,
    broken_streams,
    overload,
)


# --- all faults ------------------------------------------------------------------------------------------------------


def chaos(rounds: int = 1, kills: int = 1, number: int = 1) -> dict[str, int]:
    """Do all of it; return the counts.

    Raises:
        Wrong: a call was lost, an answer wrong, or a server left otherwise than it was.
    """
    rng = random.Random(number)
    counted = {"right": 0, "checks": 0, "kills": 0, "stops": 0, "swaps": 0, "peak": 0}
    with under_trial("--max-queued", 32, growth=MOST_MIB) as subject:
        for i in range(rounds):
            for fault in CALLERS:
                begun = time.monotonic()
                if fault in (slow_readers, overload):  # these have a load of one kind, or refuse calls
                    fault(subject, rng)
                else:
                    with under_load(subject.server.grpc, subject.goods, threads=2) as load:
                        fault(subject, rng)
                    counted["right"] += load.answered
                subject.check(fault.__name__)
                print(
                    f"round {i + 1}  {fault.__name__.replace('_', ' '):18}  {time.monotonic() - begun:5.1f} s"
                    f"  memory {subject.memory() - subject.before:+6.1f} MiB",
                    flush=True,
                )
        counted["checks"] = subject.checks
        counted["peak"] = round(subject.peak)
    for i in range(kills):
        counted["right"] += kill_of_one_of_two(rng)
        counted["kills"] += 1
        counted["right"] += stop_under_load(rng)
        counted["stops"] += 1
        counted["right"] += swaps(rng)
        counted["swaps"] += 10
        print(f"kill, stop and swaps {i + 1}", flush=True)
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description="Faults under load.")
    parser.add_argument("--rounds", type=int, default=5, help="of callers who are slow, leave, break off; and kills")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    counted = chaos(chosen.rounds, chosen.rounds, chosen.seed)
    scorecard.write(
        "chaos",
        f"make chaos ROUNDS={chosen.rounds}",
        {
            "right answers to concurrent clients": f"{counted['right']:,}",
            "wrong answers": "0",
            "lost calls": "0",
            "kill -9 of one of two replicas, with requests of up to 1 MiB": str(counted["kills"]),
            "stops under load": str(counted["stops"]),
            "models loaded or unloaded under load": str(counted["swaps"]),
            scorecard.CHECKS: str(counted["checks"]),
            "largest growth of memory": f"{counted['peak']} MiB",
        },
    )


if __name__ == "__main__":
    main()
