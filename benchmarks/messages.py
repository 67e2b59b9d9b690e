"""Microseconds of CPU to write a large answer and a large request, with glibc as it is and as our processes set it.

    .venv-dev/bin/python benchmarks/messages.py

The answer is of one sequence, T = 128: its output of d = 384 and the weights of 12 heads. The request is 14 sequences
of 45 positions. Each is made anew, as in a server or a client, several hundred times.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from attention_client.wire.request import attend_request, serialize
from attention_proto.allocator import keep_freed
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.codec import encode
from attention_server.codecs.proto import encode_response as serialize_response
from attention_server.domain.messages import Response, Result
from rich.console import Console

TIMES, ROUNDS = 100, 5


def microseconds(work: Callable[[], object]) -> float:
    """Return the median of several rounds."""
    taken = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(TIMES):
            work()
        taken.append((time.process_time() - began) / TIMES * 1e6)
    return statistics.median(taken)


def by_protobuf(response: Response) -> bytes:
    """Write outputs as protobuf does."""
    message = pb.AttendResponse(model=response.model, version=response.version)
    for result in response.results:
        written = message.results.add()
        for name, value in result.outputs.items():
            written.outputs.add(name=name, tensor=encode(value))
    return message.SerializeToString()


def measure() -> None:
    """Measure in this process."""
    outputs = {"output": np.ones((128, 384), np.float32), "weights": np.ones((12, 128, 128), np.float32)}
    response = Response("block", 1, (Result(outputs),))
    query = np.ones((45, 384), np.float32)
    request = attend_request("block", [query] * 14, ["output"], 1, token_offsets=False)
    many = Response("block", 1, (Result(outputs),) * 16)
    ways = {
        "answer: arrays to bytes, by protobuf": lambda: by_protobuf(response),
        "answer: arrays to bytes, as the server does": lambda: serialize_response(response),
        "request: message to bytes, by protobuf": request.SerializeToString,
        "request: message to bytes, as the client does": lambda: serialize(request),
        # Last, for glibc keeps more by itself when it has given back so much.
        "16 answers in one: by protobuf": lambda: by_protobuf(many),
        "16 answers in one: as the server does": lambda: serialize_response(many),
    }
    for name, way in ways.items():
        Console().print(f"{name:48} {microseconds(way):7.0f} us")


def main() -> None:
    """Measure in a process of each kind."""
    if sys.argv[1:] == ["kept"]:
        keep_freed()
        measure()
        return
    Console().print("glibc as it is")
    measure()
    Console().print("what is freed is kept")
    subprocess.run([sys.executable, __file__, "kept"], check=True)  # noqa: S603 # our own


if __name__ == "__main__":
    main()
