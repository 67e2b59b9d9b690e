"""The block behind Triton, by pytriton: `python -m benchmarks.serving.peers.triton_server HTTP GRPC METRICS`, ports.

The environment variable BLOCK is the block's folder. Triton batches queued requests of one length without a delay,
which would slow a single caller.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.serving.block import HEADS, WIDTH, Block, Vectors

block = Block(Path(os.environ["BLOCK"]))


@batch
def attend(x: Vectors) -> dict[str, Vectors]:
    return {"output": block.attend(x)}


@batch
def explain(x: Vectors) -> dict[str, Vectors]:
    output, weights = block.explain(x)
    return {"output": output, "weights": weights}


def main() -> None:
    """Serve until a signal arrives."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # on any other, pytriton leaves its workspace behind
    http, grpc, metrics = map(int, sys.argv[1:])
    x = Tensor(name="x", dtype=np.float32, shape=(-1, WIDTH))
    output = Tensor(name="output", dtype=np.float32, shape=(-1, WIDTH))
    weights = Tensor(name="weights", dtype=np.float32, shape=(HEADS, -1, -1))
    config = ModelConfig(max_batch_size=32, batcher=DynamicBatcher())
    with Triton(config=TritonConfig(http_port=http, grpc_port=grpc, metrics_port=metrics)) as triton:
        triton.bind("attend", attend, [x], [output], config=config)
        triton.bind("explain", explain, [x], [output, weights], config=config)
        triton.serve()


if __name__ == "__main__":
    main()
