"""The block as an MLServer runtime. The environment variable BLOCK is the block's folder."""

import os
from pathlib import Path

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.serving.block import Block


class Runtime(MLModel):
    """MLServer runtime that returns the outputs named in a request."""

    async def load(self) -> bool:
        self.block = Block(Path(os.environ["BLOCK"]))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        x = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32, copy=False)
        if "weights" in {output.name for output in payload.outputs or ()}:
            arrays = dict(zip(("output", "weights"), self.block.explain(x), strict=True))
        else:
            arrays = {"output": self.block.attend(x)}
        outputs = [NumpyCodec.encode_output(name, array) for name, array in arrays.items()]
        return InferenceResponse(model_name=self.name, outputs=outputs)
