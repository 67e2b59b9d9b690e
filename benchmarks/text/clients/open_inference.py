"""Load of texts on a server of the Open Inference Protocol over gRPC, by Triton's own client."""

import asyncio
from pathlib import Path

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.grpc import InferInput, InferRequestedOutput

from benchmarks.serving.clients.loop import Load, at_once, given_load, one_by_one, print_measurement
from benchmarks.text.fused import Answer
from benchmarks.text.texts import CHECKED, Texts

NAMES = {"hidden": ("hidden",), "top": ("hidden", "values", "indices")}
MODELS = {"hidden": "embed", "top": "explain"}


class Requests:
    """The model, inputs and outputs of a load's requests."""

    def __init__(self, load: Load, texts: Texts) -> None:
        self.model, self.names = MODELS[load.outputs], NAMES[load.outputs]
        self.inputs = [_input(text) for text in texts]
        self.outputs = [InferRequestedOutput(name) for name in self.names]

    def read(self, answer: tritonclient.grpc.InferResult) -> Answer:
        return {name: answer.as_numpy(name)[0] for name in self.names}


def main() -> None:
    """Measure unary calls."""
    load = given_load()
    texts, top = Texts(Path(load.reference), load.lengths), load.outputs == "top"
    requests = Requests(load, texts)
    with tritonclient.grpc.InferenceServerClient(load.target) as client:

        def ask(i: int) -> Answer:
            inputs = requests.inputs[i % len(requests.inputs)]
            return requests.read(client.infer(requests.model, inputs, outputs=requests.outputs, client_timeout=30))

        for number in range(CHECKED):
            texts.check(number, ask(number), top=top)
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


def _input(text: str) -> list[InferInput]:
    tensor = InferInput("text", (1, 1), "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()]], np.object_))
    return [tensor]


if __name__ == "__main__":
    main()
