"""CPU time to encode a large response and a large request, with glibc's defaults and with the processes' settings.

    .venv-dev/bin/python benchmarks/messages.py

The response has one sequence, T = 128, with the output of d = 384 and the weights of 12 heads. The request has 14
sequences of 45 positions. Each is encoded several hundred times into new memory, as in a server or a client.
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
    """Return the CPU time of a call, the median of several rounds."""
    taken = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(TIMES):
            work()
        taken.append((time.process_time() - began) / TIMES * 1e6)
    return statistics.median(taken)


def by_protobuf(response: Response) -> bytes:
    """Encode a response with protobuf alone."""
    message = pb.AttendResponse(model=response.model, version=response.version)
    for result in response.results:
        written = message.results.add()
        for name, value in result.outputs.items():
            written.outputs.add(name=name, tensor=encode(value))
    return message.SerializeToString()


def measure() -> None:
    """Measure and print every encoding, with this process's allocator settings."""
    outputs = {"output": np.ones((128, 384), np.float32), "weights": np.ones((12, 128, 128), np.float32)}
    response = Response("block", 1, (Result(outputs),))
    query = np.ones((45, 384), np.float32)
    request = attend_request("block", [query] * 14, ["output"], 1, token_offsets=False)
    many = Response("block", 1, (Result(outputs),) * 16)
    encodings = {
        "answer: arrays to bytes, by protobuf": lambda: by_protobuf(response),
        "answer: arrays to bytes, as the server does": lambda: serialize_response(response),
        "request: message to bytes, by protobuf": request.SerializeToString,
        "request: message to bytes, as the client does": lambda: serialize(request),
        # Last, since glibc raises its own thresholds after such large blocks are freed.
        "16 answers in one: by protobuf": lambda: by_protobuf(many),
        "16 answers in one: as the server does": lambda: serialize_response(many),
    }
    for name, encoding in encodings.items():
        Console().print(f"{name:48} {microseconds(encoding):7.0f} us")


def main() -> None:
    """Measure in a process with glibc's defaults and in one with the settings of server and client."""
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
