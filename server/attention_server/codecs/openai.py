"""Requests for embeddings and answers, in the form of OpenAI's API. Decoding is strict."""

import base64
from typing import Any, Literal

import numpy as np

from attention_server.codecs.document import Json, choice, elements, fields, kind_of, nested, parse, typed
from attention_server.codecs.duplicates import refuse_duplicates
from attention_server.codecs.number_lists import for_writing, write
from attention_server.codecs.url import parse_version
from attention_server.domain.limits import Limits
from attention_server.domain.messages import Array, EmbeddingsRequest, Response, Sequence
from attention_server.errors import InvalidRequest

Encoding = Literal["float", "base64"]

FIELDS = ("input", "model", "encoding_format", "dimensions", "user")
TOKEN_IDS = np.dtype(np.int64)


def decode_request(body: bytes, limits: Limits) -> tuple[EmbeddingsRequest, Encoding]:
    """Decode a request; return it and the encoding of the embeddings.

    Args:
        body: the JSON document. Its `model` is a name, or `NAME@VERSION`; `user` is for OpenAI's records, and ignored.
        limits: limits of one request.

    Raises:
        TooLarge: the request has too many sequences, lists or objects.
        InvalidRequest: the body is not JSON, or a field is unknown or of the wrong type.
    """
    content = fields(parse(body), "", FIELDS)
    model, _, version = typed(content, "model", str, "", "").partition("@")
    if not model:
        raise InvalidRequest("give the name of a model, or NAME@VERSION", field="model")
    typed(content, "user", str, "", "")
    request = EmbeddingsRequest(
        model=model,
        version=parse_version(version) if version else 0,
        inputs=_inputs(content, limits),
        dimensions=typed(content, "dimensions", int, 0, ""),
    )
    encoding = choice(content, "encoding_format", ("float", "base64"), "float", "")
    refuse_duplicates(body, content)
    return request, encoding


def encode_response(response: Response, encoding: Encoding) -> bytes:
    """Encode embeddings: lists of numbers, or base64 of little-endian float32."""
    data = []
    tokens = 0
    for index, result in enumerate(response.each()):
        (embedding,) = result.outputs.values()
        assert isinstance(embedding, np.ndarray)
        data.append({"object": "embedding", "index": index, "embedding": _encoded(embedding, encoding)})
        tokens += 0 if result.tokens is None else len(result.tokens.ids)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    document = {"object": "list", "data": data, "model": response.model, "usage": usage}
    return write(document)


def _inputs(content: Json, limits: Limits) -> tuple[Sequence, ...]:
    """Return one sequence for a string or a list of token ids, several for a list of these."""
    value = content.get("input")
    if isinstance(value, str):
        return (Sequence(path="input", text=value),)
    if value is None or value == []:
        raise InvalidRequest("give a string, a list of strings, or token ids", field="input")
    values = elements(content, "input", "")
    if isinstance(values[0], int) and not isinstance(values[0], bool):
        return (_sequence(values, "input"),)
    limits.check_sequences(len(values), "input")  # before any is decoded
    return tuple(_sequence(each, f"input[{i}]") for i, each in enumerate(values))


def _sequence(value: object, path: str) -> Sequence:
    if isinstance(value, str):
        return Sequence(path=path, text=value)
    if isinstance(value, list):
        return Sequence(path=path, token_ids=nested(value, TOKEN_IDS, path))
    raise InvalidRequest(f"must be a string or a list of token ids, not {kind_of(value)}", field=path)


def _encoded(embedding: Array, encoding: Encoding) -> Any:
    vector = np.ascontiguousarray(embedding, "<f4")
    return base64.b64encode(vector.tobytes()).decode() if encoding == "base64" else for_writing(vector)
