"""The fused graph as an MLServer runtime. The environment variable FUSED is the graphs' folder."""

import os
from pathlib import Path

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.text.fused import Fused


class Runtime(MLModel):
    """MLServer runtime of hidden states, batched where MLServer's adaptive batching joins requests, and top weights."""

    async def load(self) -> bool:
        self.fused = Fused(Path(os.environ["FUSED"]))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        texts = StringCodec.decode_input(payload.inputs[0])
        if self.name == "explain":
            answers = [self.fused.answer(text, top=True) for text in texts]
        elif len(texts) == 1:
            answers = [self.fused.answer(texts[0])]
        else:
            answers = self.fused.answer_padded(texts)
        outputs = [NumpyCodec.encode_output(name, np.stack([each[name] for each in answers])) for name in answers[0]]
        return InferenceResponse(model_name=self.name, outputs=outputs)
