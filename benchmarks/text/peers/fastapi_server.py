"""FastAPI with `transformers` in eager mode: `fastapi_server PORT`; CHECKPOINT is the folder."""

import os
import sys
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModel, AutoTokenizer

from benchmarks.text.fused import HEADS, SITES, top_weights

torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(os.environ["CHECKPOINT"])
model = AutoModel.from_pretrained(os.environ["CHECKPOINT"], attn_implementation="eager").eval()
app = FastAPI()


class Request(BaseModel):
    """One text, and whether the top weights of two pairs are asked for."""

    text: str
    top: bool = False


@app.post("/inference")
async def answer(request: Request) -> dict[str, Any]:
    with torch.no_grad():
        found = model(**tokenizer(request.text, return_tensors="pt"), output_attentions=request.top)
    pooled = {"hidden": found.last_hidden_state[0].mean(0).tolist()}
    if not request.top:
        return pooled
    pairs = [found.attentions[site][0, head].numpy() for site, head in zip(SITES, HEADS, strict=True)]
    return pooled | {name: array.tolist() for name, array in top_weights(np.stack(pairs)).items()}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
