"""Load of texts on a server of the Open Inference Protocol over gRPC, by Triton's own client."""

from functools import partial
from pathlib import Path

import numpy as np
from tritonclient.grpc import InferInput

from benchmarks.serving.clients.loop import given_load
from benchmarks.serving.clients.open_inference import Requests, measure
from benchmarks.text.texts import CHECKED, Texts


def main() -> None:
    """Measure unary calls."""
    load = given_load()
    texts, top = Texts(Path(load.reference), load.lengths), load.outputs == "top"
    names = ("hidden", "values", "indices") if top else ("hidden",)
    requests = Requests("explain" if top else "embed", names, [_input(text) for text in texts])
    measure(requests, load, CHECKED, partial(texts.check, top=top))


def _input(text: str) -> list[InferInput]:
    tensor = InferInput("text", (1, 1), "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()]], np.object_))
    return [tensor]


if __name__ == "__main__":
    main()
