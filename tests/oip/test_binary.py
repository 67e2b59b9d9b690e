"""Binary tensors and compressed bodies of the Open Inference Protocol over HTTP."""

import gzip
import json
import struct
import zlib

import pytest
import requests
from serving import HANG

from tests.oip.oip_requests import LENGTH, QUERY, RAW, binary, bytes_input, infer, post

# --- bytes behind JSON ---


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (binary({"inputs": [bytes_input("query", 9)]}, RAW), "inputs[0].parameters.binary_data_size: says 9 bytes"),
        (binary({"inputs": [bytes_input("query", -1)]}, RAW), "inputs[0].parameters.binary_data_size: says -1 bytes"),
        (binary({"inputs": [bytes_input("query", 8)]}, RAW + b"x"), f"{LENGTH}: leaves 1 bytes"),
        (
            binary({"inputs": [bytes_input("query", 4)]}, RAW[:4]),
            "query: has shape [1, 1, 2] of FP32, which is 8 bytes",
        ),
        (binary({"inputs": [bytes_input("query", 8)]}, RAW, "99999"), f"{LENGTH}: must be from 0 to"),
        (binary({"inputs": [bytes_input("query", 8)]}, RAW, "-1"), f"{LENGTH}: must be from 0 to"),
        (binary({"inputs": [bytes_input("query", 8)]}, RAW, "9" * 5000), f"{LENGTH}: must be from 0 to"),
        (binary({"inputs": [bytes_input("query", 8)]}, RAW, "x"), f"{LENGTH}: must be from 0 to"),
        (binary({"inputs": [bytes_input("query", 8) | {"data": [1, 2]}]}, RAW), "inputs[0].data: stands beside"),
        (
            binary({"inputs": [bytes_input("text", 8, "BYTES", (1,))]}, struct.pack("<I", 9) + b"abcd"),
            "text: ends within",
        ),
        (
            binary({"inputs": [bytes_input("text", 5, "BYTES", (1,))]}, struct.pack("<I", 1) + b"\xff"),
            "text: must be UTF-8",
        ),
        (binary({"inputs": [bytes_input("text", 2, "BYTES", (1,))]}, b"ab"), "text: ends within an element"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_bytes_that_do_not_fit(server, asked, words):
    """Bytes that are too few, too many, or not a tensor are refused by the name of the field."""
    response = post(server, "/v2/models/dot/infer", asked["body"], headers=asked["headers"])
    assert response.status_code == 400
    assert response.json()["error"].startswith(words), response.json()


def test_bytes_are_sent_as_they_are_asked_for(server):
    """`binary_data` of an output goes before `binary_data_output`; the header says where the bytes begin."""
    outputs = [{"name": "output"}, {"name": "scores", "parameters": {"binary_data": False}}]
    response = infer(server, outputs=outputs, parameters={"binary_data_output": True})
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers[LENGTH])
    output, scores = json.loads(response.content[:length])["outputs"]
    assert output["parameters"] == {"binary_data_size": 16} and "data" not in output
    assert len(scores["data"]) == 4
    assert len(response.content) == length + 16
    assert LENGTH not in infer(server, outputs=outputs).headers


@pytest.mark.parametrize("path", ["/v2/models/dot/infer", "/v1/models/dot:attend"])
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_bodies(server, path, encoding):
    """A compressed body is read, of either protocol."""
    body = json.dumps({"inputs": [QUERY]} if path.startswith("/v2") else {"query": [[1, 0]]}).encode()
    packed = {"gzip": gzip.compress, "deflate": zlib.compress}[encoding](body)
    response = requests.post(f"{server.url}{path}", packed, headers={"content-encoding": encoding}, timeout=HANG)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("body", "encoding", "words"),
    [
        (b"{}", "gzip", "Content-Encoding: the body is no gzip"),
        (gzip.compress(b"{}")[:-4], "gzip", "Content-Encoding: the body is no gzip"),
        (zlib.compress(b"{}") + b"x", "deflate", "Content-Encoding: the body is no deflate"),
        (b"{}", "br", "Content-Encoding: must be one of gzip, deflate, not 'br'"),
    ],
    ids=["no gzip", "a cut gzip", "more than a deflate", "another encoding"],
)
def test_bodies_that_are_not_compressed_as_they_say(server, body, encoding, words):
    """A body that is not of its encoding, or of one that is not known, is refused."""
    response = post(server, "/v2/models/dot/infer", body, headers={"content-encoding": encoding})
    assert response.status_code == 400
    assert response.json()["error"].startswith(words)


def test_what_inflates_too_far_is_refused(narrow):
    """The limit of a body holds for the inflated body; inflation stops there."""
    bomb = gzip.compress(bytes(64 * 2**20))
    assert len(bomb) < 2**20
    response = post(narrow, "/v2/models/dot/infer", bomb, headers={"content-encoding": "gzip"})
    assert response.status_code == 413


def test_padding_counts_in_the_limit_of_an_answer(narrow):
    """Short sequences are padded to the longest: an answer that is too large because of padding is refused."""
    query = {"name": "query", "datatype": "FP32", "shape": [64, 100, 1], "data": [0.0] * 6400}
    lengths = {"name": "query_lengths", "datatype": "INT64", "shape": [64], "data": [100] + [1] * 63}
    response = infer(narrow, inputs=[query, lengths], outputs=[{"name": "weights"}])
    assert response.status_code == 413
    assert response.json()["error"].startswith("outputs: the answer would be at least 2560000 bytes, padded")
