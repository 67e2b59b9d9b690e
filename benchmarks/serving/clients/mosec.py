"""Load on mosec: MessagePack over HTTP/1.1, on connections that stay open.

Requests are encoded before the clock starts, and answers are read from the socket directly, because the common HTTP
clients of Python are slower than mosec for short sequences.
"""

import asyncio
import http.client
from pathlib import Path

import msgpack
import numpy as np
import uvloop

from benchmarks.serving.block import HEADS, WIDTH, sequences
from benchmarks.serving.clients.loop import Load, at_once, given_load, one_by_one, print_measurement
from benchmarks.serving.reference import CHECKED, Reference


def main() -> None:
    """Measure unary calls."""
    load = given_load()
    weights = load.outputs == "weights"
    bodies = [msgpack.packb({"x": x.tobytes(), "weights": weights}) for x in sequences(load.lengths)]
    reference = Reference(Path(load.reference), load.lengths)
    connection = http.client.HTTPConnection(load.target, timeout=30)

    def ask(i: int) -> dict[str, np.ndarray]:
        connection.request("POST", "/inference", bodies[i % len(bodies)])
        with connection.getresponse() as response:
            assert response.status == 200, response.read()
            return read(response.read())

    for i in range(CHECKED):
        reference.check(i, ask(i))
    if not load.seconds:
        print_measurement({})
    elif load.concurrency == 1:
        print_measurement(one_by_one(ask, load.seconds))
    else:
        print_measurement(uvloop.run(concurrent(bodies, load)))


async def concurrent(bodies: list[bytes], load: Load) -> dict[str, float]:
    host, port = load.target.split(":")
    head = f"POST /inference HTTP/1.1\r\nhost: {load.target}\r\ncontent-length: "
    requests = [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]
    idle = [await asyncio.open_connection(host, int(port), limit=2**20) for _ in range(load.concurrency)]

    async def ask(i: int) -> None:
        reader, writer = idle.pop()
        writer.write(requests[i % len(requests)])
        status, *fields = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        (length,) = (int(field[15:]) for field in fields if field.startswith(b"content-length:"))
        body = await reader.readexactly(length)
        assert b" 200 " in status, body
        read(body)
        idle.append((reader, writer))

    measured = await at_once(ask, load.concurrency, load.seconds)
    for _, writer in idle:
        writer.close()
    return measured


def read(body: bytes) -> dict[str, np.ndarray]:
    answer = msgpack.unpackb(body)
    output = np.frombuffer(answer["output"], np.float32).reshape(-1, WIDTH)
    if "weights" not in answer:
        return {"output": output}
    shape = (HEADS, len(output), len(output))
    return {"output": output, "weights": np.frombuffer(answer["weights"], np.float32).reshape(shape)}


if __name__ == "__main__":
    main()
