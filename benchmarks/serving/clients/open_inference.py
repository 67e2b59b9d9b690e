"""Load on a server of the Open Inference Protocol over gRPC, by Triton's own client."""

import asyncio
from pathlib import Path

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.grpc import InferInput, InferRequestedOutput

from benchmarks.serving.block import Vectors, sequences
from benchmarks.serving.clients.loop import Load, at_once, given_load, one_by_one, tell
from benchmarks.serving.reference import CHECKED, Reference


class Asked:
    """What a load asks for: a model and its outputs."""

    def __init__(self, load: Load) -> None:
        weights = load.outputs == "weights"
        self.model = "explain" if weights else "attend"
        self.names = ("output", "weights") if weights else ("output",)
        self.inputs = [_input(x) for x in sequences(load.lengths)]
        self.outputs = [InferRequestedOutput(name) for name in self.names]

    def read(self, answer: tritonclient.grpc.InferResult) -> dict[str, np.ndarray]:
        return {name: answer.as_numpy(name)[0] for name in self.names}


def main() -> None:
    """Measure unary calls."""
    load = given_load()
    asked = Asked(load)
    reference = Reference(Path(load.reference), load.lengths)
    with tritonclient.grpc.InferenceServerClient(load.target) as client:

        def ask(i: int) -> dict[str, np.ndarray]:
            inputs = asked.inputs[i % len(asked.inputs)]
            return asked.read(client.infer(asked.model, inputs, outputs=asked.outputs, client_timeout=30))

        for i in range(CHECKED):
            reference.check(i, ask(i))
        if not load.seconds:
            tell({})
        elif load.concurrency == 1:
            tell(one_by_one(ask, load.seconds))
        else:
            tell(asyncio.run(concurrent(asked, load)))


async def concurrent(asked: Asked, load: Load) -> dict[str, float]:
    async with tritonclient.grpc.aio.InferenceServerClient(load.target) as client:

        async def ask(i: int) -> None:
            inputs = asked.inputs[i % len(asked.inputs)]
            asked.read(await client.infer(asked.model, inputs, outputs=asked.outputs, client_timeout=30))

        return await at_once(ask, load.concurrency, load.seconds)


def _input(x: Vectors) -> list[InferInput]:
    tensor = InferInput("x", (1, *x.shape), "FP32")
    tensor.set_data_from_numpy(x[None])
    return [tensor]


if __name__ == "__main__":
    main()
