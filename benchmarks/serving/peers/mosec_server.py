"""The block behind mosec: `python -m benchmarks.serving.peers.mosec_server --port N`.

The environment variable BLOCK is the block's folder. BATCHED=1 batches queued requests, padded and masked if lengths
differ.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from mosec import Server, Worker
from mosec.mixin import MsgpackMixin

from benchmarks.serving.block import WIDTH, Block, Vectors


class Single(MsgpackMixin, Worker):
    """Worker that computes requests one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block(Path(os.environ["BLOCK"]))

    def forward(self, data: dict[str, Any]) -> dict[str, bytes]:
        x = _vectors(data)[None]
        if not data["weights"]:
            return {"output": self.block.attend(x).tobytes()}
        output, weights = self.block.explain(x)
        return {"output": output.tobytes(), "weights": weights.tobytes()}


class Batched(Single):
    """Worker that computes queued requests as one batch; outputs only."""

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, bytes]]:  # type: ignore[override]
        return [{"output": output.tobytes()} for output in self.block.attend_padded([_vectors(one) for one in data])]


def _vectors(data: dict[str, Any]) -> Vectors:
    return np.frombuffer(data["x"], np.float32).reshape(-1, WIDTH)


def serve(single: type[Worker], batched: type[Worker]) -> None:
    """Serve one by one, or in batches of up to 32 that wait 1 ms."""
    server = Server()
    if os.environ.get("BATCHED"):
        server.append_worker(batched, num=1, max_batch_size=32, max_wait_time=1)
    else:
        server.append_worker(single, num=1)
    server.run()


if __name__ == "__main__":
    serve(Single, Batched)
