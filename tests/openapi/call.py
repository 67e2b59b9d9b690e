"""Calls `:attend` by the client that openapi-python-client made of the OpenAPI document; types are checked strictly.

Usage: python call.py URL, with the generated package `generated` on the path. Prints one JSON document.
"""

import json
import sys

from generated import Client
from generated.api.attention import attend, tokenize
from generated.api.embeddings import create_embeddings
from generated.api.models import get_model
from generated.models import (
    AttendRequest,
    AttendResponse,
    Causal,
    EmbeddingsRequest,
    Encoding,
    ErrorResponse,
    InputTensor,
    Mask,
    Model,
    OpenAIErrorResponse,
    OutputName,
    OutputSpec,
    Reduce,
    Tensor,
    TokenizeInput,
    TokenizeRequest,
    TokenizeResponse,
    TopK,
)
from generated.types import UNSET


def numbers(tensor: Tensor) -> list[float]:
    """Return the elements of a tensor, row-major."""
    flat: list[float] = []
    waiting: list[object] = [tensor.values]
    while waiting:
        value = waiting.pop(0)
        if isinstance(value, list):
            waiting[:0] = value
        elif isinstance(value, float | int):
            flat.append(value)
    return flat


def answered(answer: AttendResponse | ErrorResponse | None) -> AttendResponse:
    """Return an answer that is not an error."""
    if not isinstance(answer, AttendResponse):
        raise SystemExit(f"no answer: {answer}")
    return answer


client = Client(base_url=sys.argv[1])
model = get_model.sync("dot", client=client)
assert isinstance(model, Model)
by_rows = AttendRequest(
    query=[[1, 0], [0, 1], [1, 1]],
    mask=Mask(causal=Causal.TOP_LEFT),
    outputs=[
        OutputSpec(OutputName.WEIGHTS),
        OutputSpec(OutputName.ENTROPY),
        OutputSpec(OutputName.WEIGHTS, as_="top", top_k=2, reduce=Reduce.MEAN),
        OutputSpec(OutputName.WEIGHTS, as_="pair", pairs=["0.0"]),
    ],
)
first = answered(attend.sync("dot", client=client, body=by_rows)).results[0]
weights, entropy, top = first.outputs["weights"], first.outputs["entropy"], first.outputs["top"]
pair = first.outputs["pair"]
assert isinstance(weights, Tensor)
assert isinstance(entropy, Tensor)
assert isinstance(top, TopK)
assert isinstance(pair, Tensor)
read = AttendRequest(
    text="cats and",
    memory_text="ein und",
    outputs=[OutputSpec(OutputName.EMBEDDINGS), OutputSpec(OutputName.PREDICTIONS, top=2)],
)
text = answered(attend.sync("text-cross", client=client, body=read)).results[0]
embeddings, predictions = text.outputs["embeddings"], text.predictions
assert isinstance(embeddings, Tensor)
assert predictions
assert predictions[0].top
words = TokenizeRequest(inputs=[TokenizeInput(text="ein und")], memory=True)
tokens = tokenize.sync("text-cross", client=client, body=words)
assert isinstance(tokens, TokenizeResponse)
by_ids = AttendRequest(text="cats and", memory_token_ids=tokens.results[0].token_ids)
assert answered(attend.sync("text-cross", client=client, body=by_ids)).results[0].memory_tokens == text.memory_tokens
packed = AttendRequest(
    query=InputTensor(shape=[3, 2], values=[1, 0, 0, 1, 1, 1]),
    encoding=Encoding.BASE64,
    outputs=[OutputSpec(OutputName.OUTPUT)],
)
output = answered(attend.sync("dot", client=client, body=packed)).results[0].outputs["output"]
assert isinstance(output, Tensor)
assert output.data is not UNSET
refused = attend.sync("dot", client=client, body=AttendRequest(query=[[1, 0]], key=[[1, 0, 0]]))
assert isinstance(refused, ErrorResponse)
embedding = create_embeddings.sync(client=client, body=EmbeddingsRequest(input_=["a"], model="text-cross"))
assert isinstance(embedding, OpenAIErrorResponse)
print(
    json.dumps(
        {
            "block": model.manifest.block,
            "shape": weights.shape,
            "weights": numbers(weights),
            "entropy": numbers(entropy),
            "pair": numbers(pair),
            "embeddings": embeddings.shape,
            "top": [[each.id, each.label, each.probability] for each in predictions[0].top],
            "first": [predictions[0].id, predictions[0].label, predictions[0].probability],
            "indices": numbers(top.indices),
            "output": output.data,
            "tokens": tokens.results[0].tokens,
            "field": refused.error.field,
            "without_pooling": [embedding.error.param, embedding.error.message],
        }
    )
)
