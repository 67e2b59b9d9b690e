"""Requests as MLServer's codecs write them, and answers as they read them: `python mlserver_codecs.py URL`.

Prints one JSON document: what each request was answered by, in nested lists, or the words of its refusal.
"""

import importlib.util
import json
import sys
import types

import httpx
import numpy as np
import pandas as pd

# The codecs alone: the package's own __init__ imports its server, and what that needs.
package = types.ModuleType("mlserver")
package.__path__ = list(importlib.util.find_spec("mlserver").submodule_search_locations)
sys.modules["mlserver"] = package

from mlserver.codecs import Base64Codec, NumpyCodec, PandasCodec, StringCodec, StringRequestCodec  # noqa: E402
from mlserver.types import InferenceRequest, InferenceResponse, Parameters, RequestOutput  # noqa: E402

TEXTS = ["I gave my cat Tater a toy", "Mia was shown a letter by Leo"]
QUERY = np.array([[[1, 0], [0, 1]], [[1, 1], [2, 0]]], np.float32)
WANTED = [RequestOutput(name=name, parameters=Parameters(content_type="np")) for name in ("weights", "tokens")]


def ask(model, request, *, nulls=False):
    """Send a request, with fields that are null where asked for; return each output as a codec reads it."""
    body = request.model_dump_json(exclude_none=False) if nulls else request.model_dump_json()
    sent = json.loads(body)
    if nulls:
        sent |= {"id": None, "parameters": {"content_type": None, "headers": {"x-request-id": "a"}}}
        sent["inputs"][0]["parameters"]["headers"] = None
    answer = httpx.post(f"{sys.argv[1]}/v2/models/{model}/infer", json=sent, timeout=60)
    if answer.status_code != 200:
        return answer.json()["error"]
    response = InferenceResponse.model_validate(answer.json())
    codecs = {each.name: StringCodec if each.datatype == "BYTES" else NumpyCodec for each in response.outputs}
    outputs = {each.name: codecs[each.name].decode_output(each) for each in response.outputs}
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in outputs.items()}


def request(*inputs, **fields):
    return InferenceRequest(inputs=list(inputs), **fields)


texts = StringCodec.encode_input("text", TEXTS, use_bytes=False)
query = NumpyCodec.encode_input("query", QUERY)
lengths = NumpyCodec.encode_input("query_lengths", np.array([2, 1]))
frame = PandasCodec.encode_request(pd.DataFrame({"text": TEXTS}), use_bytes=False)
frame.outputs = WANTED
first = StringRequestCodec.encode_request(TEXTS, use_bytes=False)
first.inputs[0].name = "text"
first.outputs = WANTED
packed = Base64Codec.encode_input("text", [each.encode() for each in TEXTS], use_bytes=False)
broken = packed.model_copy(update={"data": ["cat!", "a"]})
numbers = query.model_copy(update={"parameters": Parameters(content_type="str")})
print(
    json.dumps(
        {
            "str": ask("multi-head", request(texts, outputs=WANTED)),
            "nulls": ask("multi-head", request(texts, outputs=WANTED), nulls=True),
            "pd": ask("multi-head", frame),
            "first": ask("multi-head", first),
            "base64": ask("multi-head", request(packed, outputs=WANTED)),
            "broken": ask("multi-head", request(broken)),
            "np": ask("dot", request(query, lengths)),
            "FP64": ask("dot", request(NumpyCodec.encode_input("query", QUERY.astype(float)))),
            "numbers": ask("dot", request(numbers)),
        }
    )
)
