"""The OpenAPI document of the REST API, made from the table of stages, the contract's messages and the schemas here.

Written so that generators compile it: every request and answer is a named schema, so is every enumeration; a property
has its default in its words and no `default`, since generators read that as required; and where the server takes a
string in place of an object, the schema has the object alone.
"""

from pathlib import Path
from typing import Any

from openapi_document import attention, components, contract, embeddings, inference, operations

INFO = {
    "title": "Attention Service",
    "version": "0",  # the server writes the installed version here
    "description": "Attention as a service: outputs and attention weights. A model's stages are q = query.M_Q, "
    "k = key.M_K, v = value.M_V, scores = q.k * scale, weights = softmax(mask(scores)), heads = weights.v and "
    "output = heads.M_O. Below, T is the length of the query, S that of the memory, H the number of heads.",
    "license": {"name": "Apache-2.0"},
}
TAGS = [
    {"name": "attention"},
    {"name": "embeddings", "description": "OpenAI's API."},
    {"name": "memories"},
    {"name": "models"},
    {"name": "inference", "description": "The Open Inference Protocol, version 2."},
    {"name": "health"},
]


def build(descriptors: Path) -> dict[str, Any]:
    """Return the document.

    Args:
        descriptors: the contract's FileDescriptorSet, with its comments.
    """
    return {
        "openapi": "3.0.3",
        "info": INFO,
        "tags": TAGS,
        "paths": operations.paths(),
        "components": {
            "parameters": components.PARAMETERS,
            "headers": components.HEADERS,
            "responses": components.RESPONSES,
            "schemas": attention.SCHEMAS | embeddings.SCHEMAS | contract.schemas(descriptors) | inference.SCHEMAS,
        },
    }
