"""The core in this process, from the bytes of a request to the bytes of its answer, and the valid requests to mutate.

`coverage_guided` imports this module while Atheris instruments every import.
"""

import random
from collections.abc import Callable
from pathlib import Path

from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.inference import grpc_predict_v2_pb2 as oip_pb
from attention_server.auth.callers import ALL_RIGHTS
from attention_server.codecs import json, proto
from attention_server.codecs.oip import json as oip_json
from attention_server.codecs.oip import mapping, rules
from attention_server.codecs.oip import proto as oip_proto
from attention_server.codecs.oip.messages import InferRequest, InferResponse
from attention_server.domain.call import CallContext
from attention_server.errors import AttentionServiceError
from attention_server.service.build import make_core
from attention_server.settings import Settings
from google.protobuf.message import DecodeError
from serving import made_repository

from tests.trials import hostile_json, hostile_proto

SEQUENCES = 64
EXPECTED = (AttentionServiceError, DecodeError)  # the errors that an invalid request may raise


class Core:
    """The core on the repository of the tests, called with the bytes of a request."""

    def __init__(self) -> None:
        limits = {"max_answer_mib": 1, "max_scores_mib": 1, "max_sequences": SEQUENCES}
        core = make_core(Settings(models=made_repository(), slots=1, **limits))
        core.repository.load()
        self._service = core.service

    def target(self, name: str) -> Callable[[bytes], None]:
        """Return the function of a target, `attend-json` for instance."""
        return getattr(self, name.replace("-", "_"))

    def attend_json(self, body: bytes) -> None:
        request, encoding = json.decode_request(body[1:], model_of(body), 0, self._service.limits)
        json.encode_response(self._service.submit(request, call()).result(), encoding)

    def infer_json(self, body: bytes) -> None:
        length = str(len(body) - 9) if body[:1] > b"\x80" and len(body) > 9 else None
        infer = oip_json.decode_request(body[1:], length, model_of(body), 0)
        oip_json.encode_response(self._answer(infer), infer)

    def attend_proto(self, body: bytes) -> None:
        request = proto.decode_request(pb.AttendRequest.FromString(body), self._service.limits)
        proto.encode_response(self._service.submit(request, call()).result())

    def infer_proto(self, body: bytes) -> None:
        infer = oip_proto.decode_request(oip_pb.ModelInferRequest.FromString(body))
        oip_proto.encode_response(self._answer(infer))

    def _answer(self, infer: InferRequest) -> InferResponse:
        request = mapping.to_domain(infer, self._service.limits)
        rules.timeout(infer.parameters)
        with rules.protocol_field_names():
            response = self._service.submit(request, call()).result()
        return mapping.from_domain(response, infer, self._service.limits)


def call() -> CallContext:
    return CallContext("fuzz", "fuzz", None, ALL_RIGHTS)


def model_of(body: bytes) -> str:
    return hostile_json.MODELS[(body[0] if body else 0) % 7]


def documents_of(target: str) -> list:
    return hostile_json.ATTEND if target == "attend-json" else hostile_json.INFER


def write_seeds(target: str, corpus: Path) -> None:
    """Write the valid requests of a target, one a file."""
    if target.endswith("json"):
        seeds = [
            bytes([i % 7]) + hostile_json.written(hostile_json.as_pairs(each)).encode()
            for i, each in enumerate(documents_of(target))
        ]
    else:
        method = "Attend" if target == "attend-proto" else "ModelInfer"
        messages = next(each for name, each in hostile_proto.VALID.items() if name.endswith(f"/{method}"))
        seeds = [each.SerializeToString() for each in messages]
    for i, each in enumerate(seeds):
        (corpus / str(i)).write_bytes(each)


def damaged(target: str, body: bytes, rng: random.Random) -> bytes:
    """Return a valid document with a few edits, or a request with damaged bytes."""
    if not target.endswith("json"):
        return hostile_proto.damaged(body, rng)
    if not rng.randrange(3):
        return hostile_json.damaged(body, rng)
    document = hostile_json.as_pairs(rng.choice(documents_of(target)))
    for _ in range(rng.randrange(1, 5)):
        hostile_json.edit(document, rng.randrange(999), rng.randrange(999), rng.randrange(999))
    return rng.randbytes(1) + hostile_json.written(document).encode("utf-8", "surrogatepass")
