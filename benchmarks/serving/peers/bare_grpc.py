"""gRPC's Python server with the graphs in its handlers, without checks, limits, scheduling, metrics or errors.

Its cost of a request is the least cost of any server on gRPC for Python.
"""

import argparse
import itertools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
from attention_proto.allocator import keep_freed
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import (
    AttentionServiceServicer,
    add_AttentionServiceServicer_to_server,
)
from attention_proto.codec import decode, write

from benchmarks.serving.block import Block

THREADS = 40
UNBOUNDED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class BlockServicer(AttentionServiceServicer):
    """Servicer of the block's output, one sequence at a time."""

    def __init__(self) -> None:
        self._block = Block(Path(os.environ["BLOCK"]))
        self._slot = threading.Lock()

    def Attend(self, request: pb.AttendRequest, context: grpc.ServicerContext) -> pb.AttendResponse:
        del context
        response = pb.AttendResponse(model=request.model, version=1)
        with self._slot:
            for sequence in request.inputs:
                query, ends = decode(sequence.query), itertools.accumulate(sequence.lengths)
                for each in np.split(query, list(ends)[:-1]):
                    output = self._block.attend(each[None])[0]
                    write(output, response.results.add().outputs.add(name="output").tensor)
        return response

    def AttendStream(
        self, requests: Iterator[pb.AttendStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.AttendStreamResponse]:
        for each in requests:
            yield pb.AttendStreamResponse(id=each.id, response=self.Attend(each.request, context))


def main() -> None:
    """Serve until terminated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    address = parser.parse_args().address
    keep_freed()
    server = grpc.server(ThreadPoolExecutor(THREADS), options=UNBOUNDED)
    add_AttentionServiceServicer_to_server(BlockServicer(), server)
    server.add_insecure_port(address)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
