"""Load of texts over HTTP/1.1 on connections that stay open: MessagePack to mosec, JSON to FastAPI.

Answers are read from the socket directly, because the common HTTP clients of Python are slower than the servers.
"""

import asyncio
import json
from pathlib import Path

import msgpack
import numpy as np
import uvloop

from benchmarks.serving.clients.loop import Load, at_once, given_load, print_measurement
from benchmarks.text.fused import PAIRS, Answer
from benchmarks.text.texts import CHECKED, Texts


def main() -> None:
    """Measure unary calls; the mode is the encoding."""
    uvloop.run(measure(given_load()))


async def measure(load: Load) -> None:
    """Compare the first answers with the right ones, then measure a closed loop."""
    texts, top = Texts(Path(load.reference), load.lengths), load.outputs == "top"
    encode = msgpack.packb if load.mode == "msgpack" else lambda body: json.dumps(body).encode()
    bodies = [encode({"text": text, "top": top}) for text in texts]
    host, _, port = load.target.rpartition(":")
    head = (
        f"POST /inference HTTP/1.1\r\nhost: {load.target}\r\ncontent-type: application/{load.mode}\r\ncontent-length: "
    )
    requests = [f"{head}{len(each)}\r\n\r\n".encode() + each for each in bodies]
    idle = [await asyncio.open_connection(host, int(port), limit=2**20) for _ in range(load.concurrency)]

    async def ask(i: int) -> Answer:
        reader, writer = idle.pop()
        writer.write(requests[i % len(requests)])
        status, *fields = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        (length,) = (int(field[15:]) for field in fields if field.startswith(b"content-length:"))
        body = await reader.readexactly(length)
        assert b" 200 " in status, body
        idle.append((reader, writer))
        return read(body, load.mode)

    for number in range(CHECKED):
        texts.check(number, await ask(number), top=top)
    print_measurement(await at_once(ask, load.concurrency, load.seconds) if load.seconds else {})
    for _, writer in idle:
        writer.close()


def read(body: bytes, mode: str) -> Answer:
    """Return an answer's arrays."""
    if mode == "json":
        return {name: np.asarray(value) for name, value in json.loads(body).items()}
    found = msgpack.unpackb(body)
    answer: Answer = {"hidden": np.frombuffer(found["hidden"], np.float32)}
    if "values" in found:
        shape = (len(PAIRS), found["rows"], -1)
        answer |= {
            "values": np.frombuffer(found["values"], np.float32).reshape(shape),
            "indices": np.frombuffer(found["indices"], np.int32).reshape(shape),
        }
    return answer


if __name__ == "__main__":
    main()
