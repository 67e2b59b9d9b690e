"""The server on the stand-in for a GPU, as a command; with CUDA_VISIBLE_DEVICES=-1 there is none."""

import os

from attention_server.app import main
from attention_server.inference.engine import onnxruntime as engine

from tests.stand_in_gpu import StandInGpu

if __name__ == "__main__":
    if os.environ.get("CUDA_VISIBLE_DEVICES") != "-1":
        engine.ort = StandInGpu(on_cpu=["Concat"])  # type: ignore[assignment]
    main()
