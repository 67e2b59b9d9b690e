"""Requests of the Open Inference Protocol, written by hand, and readers of the answers."""

import json
from typing import Any

import numpy as np
import requests
from attention_proto.inference import grpc_predict_v2_pb2 as pb
from serving import HANG

LENGTH = "Inference-Header-Content-Length"
QUERY = {"name": "query", "datatype": "FP32", "shape": [1, 2, 2], "data": [1, 0, 0, 1]}
TEXT = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["I gave my cat Tater a toy"]}
LENGTHS = {"name": "query_lengths", "datatype": "INT64", "shape": [1], "data": [2]}
RAW = np.array([3, 4], "<f4").tobytes()


def post(server: Any, path: str, body: Any = None, **options: Any) -> requests.Response:
    content = {"json": body} if isinstance(body, dict) else {"data": body}
    response = requests.post(f"{server.url}{path}", timeout=HANG, **content, **options)
    if response.status_code != 200:
        assert response.headers["content-type"] == "application/json"
        assert response.json().keys() == {"error"}
        assert response.headers["x-request-id"]
    return response


def infer(server: Any, model: str = "dot", **document: Any) -> requests.Response:
    return post(server, f"/v2/models/{model}/infer", {"inputs": [QUERY], **document})


def arrays(response: requests.Response) -> dict[str, np.ndarray]:
    assert response.status_code == 200, response.text
    kinds = {"FP32": "f4", "FP16": "f2", "INT64": "i8", "UINT16": "u2", "BYTES": object}
    return {
        each["name"]: np.array(each["data"], kinds[each["datatype"]]).reshape(each["shape"])
        for each in response.json()["outputs"]
    }


def binary(document: dict[str, Any], raw: bytes, length: str | None = None) -> dict[str, Any]:
    head = json.dumps(document).encode()
    return {"body": head + raw, "headers": {LENGTH: str(len(head)) if length is None else length}}


def bytes_input(name: str, size: int, datatype: str = "FP32", shape: Any = (1, 1, 2)) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape), "parameters": {"binary_data_size": size}}


def rpc_message(**fields: Any) -> pb.ModelInferRequest:
    tensor = pb.ModelInferRequest.InferInputTensor(name="query", datatype="FP32", shape=[1, 1, 2])
    return pb.ModelInferRequest(**{"model_name": "dot", "inputs": [tensor], **fields})
