"""Load on a server of the Open Inference Protocol over gRPC, by Triton's own client."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.grpc import InferInput, InferRequestedOutput

from benchmarks.serving.block import Vectors, sequences
from benchmarks.serving.clients.loop import Load, at_once, given_load, one_by_one, print_measurement
from benchmarks.serving.reference import CHECKED, Reference


class Requests:
    """Requests of a model, one for each input.

    Args:
        model: the name of the model.
        names: the requested outputs.
        inputs: the inputs of each request.
    """

    def __init__(self, model: str, names: Sequence[str], inputs: Sequence[list[InferInput]]) -> None:
        self.model, self.names, self.inputs = model, names, inputs
        self.outputs = [InferRequestedOutput(name) for name in names]

    def read(self, answer: tritonclient.grpc.InferResult) -> dict[str, np.ndarray]:
        return {name: answer.as_numpy(name)[0] for name in self.names}


def main() -> None:
    """Measure unary calls."""
    load = given_load()
    weights = load.outputs == "weights"
    names = ("output", "weights") if weights else ("output",)
    requests = Requests("explain" if weights else "attend", names, [_input(x) for x in sequences(load.lengths)])
    reference = Reference(Path(load.reference), load.lengths)
    measure(requests, load, CHECKED, reference.check)


def measure(
    requests: Requests, load: Load, checked: int, check: Callable[[int, dict[str, np.ndarray]], object]
) -> None:
    """Give the first answers to `check`, measure, and print the measurement."""
    with tritonclient.grpc.InferenceServerClient(load.target) as client:

        def ask(i: int) -> dict[str, np.ndarray]:
            inputs = requests.inputs[i % len(requests.inputs)]
            return requests.read(client.infer(requests.model, inputs, outputs=requests.outputs, client_timeout=30))

        for i in range(checked):
            check(i, ask(i))
        if not load.seconds:
            print_measurement({})
        elif load.concurrency == 1:
            print_measurement(one_by_one(ask, load.seconds))
        else:
            print_measurement(asyncio.run(concurrent(requests, load)))


async def concurrent(requests: Requests, load: Load) -> dict[str, float]:
    async with tritonclient.grpc.aio.InferenceServerClient(load.target) as client:

        async def ask(i: int) -> None:
            inputs = requests.inputs[i % len(requests.inputs)]
            requests.read(await client.infer(requests.model, inputs, outputs=requests.outputs, client_timeout=30))

        return await at_once(ask, load.concurrency, load.seconds)


def _input(x: Vectors) -> list[InferInput]:
    tensor = InferInput("x", (1, *x.shape), "FP32")
    tensor.set_data_from_numpy(x[None])
    return [tensor]


if __name__ == "__main__":
    main()
