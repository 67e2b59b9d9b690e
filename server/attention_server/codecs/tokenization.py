"""Requests for the tokens of texts, and answers, in protobuf and JSON."""

from typing import Any

import orjson
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.text import TRUNCATES

from attention_server.codecs.document import choice, elements, fields, parse, typed
from attention_server.codecs.duplicates import refuse_duplicates
from attention_server.codecs.proto import decode_truncate
from attention_server.codecs.url import url_or_body
from attention_server.domain.limits import Limits
from attention_server.domain.messages import Tokens
from attention_server.domain.tokenization import Tokenization, TokenizeInput, TokenizeRequest
from attention_server.errors import InvalidRequest, join_path

INPUT_FIELDS = ("text", "text_pair")
REQUEST_FIELDS = ("model", "version", "inputs", "truncate", "memory", *INPUT_FIELDS)


def decode_proto(message: pb.TokenizeRequest, limits: Limits) -> TokenizeRequest:
    """Decode a request in protobuf.

    Raises:
        TooLarge: there are too many texts.
        InvalidRequest: there is no such truncation.
    """
    limits.check_sequences(len(message.inputs), "inputs")
    return TokenizeRequest(
        model=message.model,
        version=message.version,
        inputs=tuple(
            TokenizeInput(each.text, each.text_pair if each.HasField("text_pair") else None, f"inputs[{i}]")
            for i, each in enumerate(message.inputs)
        ),
        truncate=decode_truncate(message.truncate, ""),
        memory=message.memory,
    )


def encode_proto(tokenization: Tokenization) -> bytes:
    """Encode an answer as a serialized TokenizeResponse."""
    message = pb.TokenizeResponse(model=tokenization.model, version=tokenization.version)
    for tokens in tokenization.results:
        message.results.add(
            token_ids=tokens.ids.tolist(),
            tokens=tokens.shown,
            token_offsets=[pb.Span(start=start, end=end) for start, end in tokens.spans],
            token_types=tokens.types.tolist(),
            special=tokens.special,
            truncated_tokens=tokens.truncated,
        )
    return message.SerializeToString()


def decode_json(body: bytes, model: str, version: int, limits: Limits) -> TokenizeRequest:
    """Decode a request in JSON; the fields of a single text may stand in the request itself.

    Args:
        body: the JSON document.
        model: the model in the URL; the document may repeat it.
        version: the version in the URL, or 0; the document may repeat it.
        limits: limits of one request.

    Raises:
        TooLarge: there are too many texts, lists or objects.
        InvalidRequest: the body is not JSON, or a field is unknown or of the wrong type.
    """
    content = fields(parse(body), "", REQUEST_FIELDS)
    request = TokenizeRequest(
        model=url_or_body("model", model, typed(content, "model", str, "", "")),
        version=url_or_body("version", version, typed(content, "version", int, 0, "")),
        inputs=tuple(_inputs(content, limits)),
        truncate=choice(content, "truncate", TRUNCATES, "none", ""),
        memory=typed(content, "memory", bool, False, ""),
    )
    refuse_duplicates(body, content)
    return request


def encode_json(tokenization: Tokenization) -> bytes:
    """Encode an answer in JSON."""
    results = [_result(tokens) for tokens in tokenization.results]
    document = {"model": tokenization.model, "version": tokenization.version, "results": results}
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _inputs(content: Any, limits: Limits) -> list[TokenizeInput]:
    own = [name for name in INPUT_FIELDS if content.get(name) is not None]
    if content.get("inputs") is None:
        return [_input(content, "")] if own else []
    if own:
        raise InvalidRequest("stands beside inputs; put it into one of them", field=own[0])
    sent = elements(content, "inputs", "")
    limits.check_sequences(len(sent), "inputs")
    return [_input(fields(each, f"inputs[{i}]", INPUT_FIELDS), f"inputs[{i}]") for i, each in enumerate(sent)]


def _input(content: Any, path: str) -> TokenizeInput:
    text = typed(content, "text", str, None, path)
    if text is None:
        raise InvalidRequest("must be a text", field=join_path(path, "text"))
    return TokenizeInput(text, typed(content, "text_pair", str, None, path), path)


def _result(tokens: Tokens) -> dict[str, Any]:
    return {
        "token_ids": tokens.ids,
        "tokens": tokens.shown,
        "token_offsets": [{"start": start, "end": end} for start, end in tokens.spans],
        "token_types": tokens.types,
        "special": tokens.special,
        "truncated_tokens": tokens.truncated,
    }
