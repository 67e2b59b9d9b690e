"""Load on the REST port: JSON with tensors in base64, JSON with nested lists, or the contract's protobuf.

Bodies are encoded before the clock starts; answers are read from the socket directly, so that no general HTTP client is
part of the measurement, and decoded into arrays.
"""

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from attention_proto.attention.v1 import attention_pb2 as pb

from benchmarks.serving.block import Vectors, sequences
from benchmarks.serving.clients.loop import Load, at_once, given_load, print_measurement
from benchmarks.serving.reference import CHECKED, Reference

PATH = "/v1/models/block:attend"
JSON, PROTOBUF = "application/json", "application/x-protobuf"


def main() -> None:
    """Measure one wire form."""
    load = given_load()
    uvloop.run(measure(load))


async def measure(load: Load) -> None:
    """Compare the first answers with the reference, then measure a closed loop."""
    bodies = [body(x, load) for x in sequences(load.lengths)]
    kind = PROTOBUF if load.mode == "protobuf" else JSON
    host, _, port = load.target.rpartition(":")
    head = f"POST {PATH} HTTP/1.1\r\nhost: {load.target}\r\ncontent-type: {kind}\r\naccept: {kind}\r\ncontent-length: "
    requests = [f"{head}{len(each)}\r\n\r\n".encode() + each for each in bodies]
    idle = [await asyncio.open_connection(host, int(port), limit=2**20) for _ in range(load.concurrency)]

    async def ask(i: int) -> dict[str, np.ndarray]:
        reader, writer = idle.pop()
        writer.write(requests[i % len(requests)])
        status, *fields = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        (length,) = (int(field[15:]) for field in fields if field.startswith(b"content-length:"))
        answer = await reader.readexactly(length)
        assert b" 200 " in status, answer
        idle.append((reader, writer))
        return read(answer, load.mode)

    reference = Reference(Path(load.reference), load.lengths)
    for i in range(CHECKED):
        reference.check(i, await ask(i))
    print_measurement(await at_once(ask, load.concurrency, load.seconds) if load.seconds else {})
    for _, writer in idle:
        writer.close()


def body(x: Vectors, load: Load) -> bytes:
    """Return the body of a request for one sequence [T, D]."""
    outputs = ["output", "weights"] if load.outputs == "weights" else ["output"]
    if load.mode == "protobuf":
        query = pb.Tensor(data_type=pb.DATA_TYPE_FP32, shape=x.shape, data=x.tobytes())
        specs = [pb.OutputSpec(name=name) for name in outputs]
        return pb.AttendRequest(inputs=[pb.Sequence(query=query)], outputs=specs).SerializeToString()
    if load.mode == "json":
        return json.dumps({"query": x.tolist(), "outputs": outputs}).encode()
    tensor = {"data_type": "FP32", "shape": x.shape, "data": base64.b64encode(x.tobytes()).decode()}
    return json.dumps({"query": tensor, "outputs": outputs, "encoding": "base64"}).encode()


def read(answer: bytes, mode: str) -> dict[str, np.ndarray]:
    """Return an answer's arrays by output name."""
    if mode == "protobuf":
        (result,) = pb.AttendResponse.FromString(answer).results
        return {
            each.name: np.frombuffer(each.tensor.data, np.float32).reshape(each.tensor.shape) for each in result.outputs
        }
    (found,) = json.loads(answer)["results"]
    return {name: _array(value) for name, value in found["outputs"].items()}


def _array(value: Any) -> np.ndarray:
    if isinstance(value, dict) and "data" in value:
        return np.frombuffer(base64.b64decode(value["data"]), np.float32).reshape(value["shape"])
    return np.asarray(value["values"] if isinstance(value, dict) else value, np.float32)


if __name__ == "__main__":
    main()
