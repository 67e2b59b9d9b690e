"""The fused graph behind Triton, by pytriton: `triton_server HTTP GRPC METRICS`, ports.

The environment variable FUSED is the graphs' folder. Triton batches queued requests without a delay, which would slow a
single caller; a batch is padded and masked.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.text.fused import Fused

fused = Fused(Path(os.environ["FUSED"]))


@batch
def embed(text: Any) -> dict[str, Any]:
    return {"hidden": np.stack([each["hidden"] for each in fused.answer_padded([row[0].decode() for row in text])])}


def explain(requests: list[Any]) -> list[dict[str, Any]]:
    return [
        {name: array[None] for name, array in fused.answer(each["text"][0, 0].decode(), top=True).items()}
        for each in requests
    ]


def main() -> None:
    """Serve until a signal arrives."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # on any other, pytriton leaves its workspace behind
    http, grpc, metrics = map(int, sys.argv[1:])
    text = Tensor(name="text", dtype=bytes, shape=(1,))
    hidden = Tensor(name="hidden", dtype=np.float32, shape=(384,))
    top = [
        Tensor(name="values", dtype=np.float32, shape=(2, -1, -1)),
        Tensor(name="indices", dtype=np.int32, shape=(2, -1, -1)),
    ]
    batched = ModelConfig(max_batch_size=32, batcher=DynamicBatcher())
    with Triton(config=TritonConfig(http_port=http, grpc_port=grpc, metrics_port=metrics)) as triton:
        triton.bind("embed", embed, [text], [hidden], config=batched)
        triton.bind("explain", explain, [text], [hidden, *top], config=ModelConfig(max_batch_size=1))
        triton.serve()


if __name__ == "__main__":
    main()
