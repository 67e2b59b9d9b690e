"""One way to call a server over every transport."""

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import requests
from attention_proto.attention.v1 import attention_pb2 as pb
from serving import HANG

from tests.messages import NAMES, TENSORS, TEXTS, Raw, read_document, read_message, request_message
from tests.refusals import refused_by_grpc, refused_by_http

REQUEST = {"outputs", "token_offsets", "ablate", "score_temperature"}  # fields of a request beside its sequences


@dataclass
class Transport:
    """One way to call a server.

    Attributes:
        name: `grpc`, `rest-json`, `rest-base64` or `rest-protobuf`.
        send: sends a request and reads the answer.
        shorthand: whether one sequence's fields are written at the top level of the request.
    """

    name: str
    send: Callable[..., dict[str, Any]]
    shorthand: bool = False
    sent_inputs: bool = field(default=False, repr=False)

    def attend(self, model: str, **request: Any) -> dict[str, Any]:
        """Ask for attention.

        Args:
            model: its name.
            request: `inputs`, a list of sequences, or the fields of one; `outputs`, `version`, `shared_mask`,
                `token_offsets`; and `timeout` (seconds), `request_id` (both sent beside the request). Tensors are
                arrays or `Raw`; masks are dicts.

        Returns:
            `model`, `version` and `results`, each with all fields of Result; `headers`.

        Raises:
            Refused: there is no answer.
        """
        sequence = {
            name: request.pop(name)
            for name in (*TENSORS, *TEXTS, "memory", "extend", "mask", "lengths") & request.keys()
        }
        self.sent_inputs = not sequence
        inputs = request.pop("inputs") if self.sent_inputs and "inputs" in request else [sequence] if sequence else []
        shorthand = {"shorthand": True} if self.shorthand and sequence else {}
        return self.send(model, inputs, **shorthand, **request)

    def one(self, model: str, **request: Any) -> dict[str, Any]:
        """Ask about one sequence; return its result."""
        (result,) = self.attend(model, **request)["results"]
        return result

    def outputs(self, model: str, **request: Any) -> dict[str, Any]:
        """Ask about one sequence; return its outputs by name."""
        return self.one(model, **request)["outputs"]

    def at(self, path: str) -> str:
        """Return how an error names a field of the last request's one sequence."""
        return path if self.shorthand and not self.sent_inputs else f"inputs[0].{path}"


TRANSPORTS = ("grpc", "rest-json", "rest-base64", "rest-protobuf")


@dataclass
class GrpcSender:
    """Asks over gRPC."""

    stub: Any

    def __call__(
        self,
        model: str,
        inputs: list[dict[str, Any]],
        *,
        timeout: float | None = None,
        request_id: str = "",
        **request: Any,
    ) -> dict[str, Any]:
        message = request_message(model, inputs, **request)
        metadata = (("x-request-id", request_id),) if request_id else ()
        try:
            response, call = self.stub.Attend.with_call(message, timeout=timeout, metadata=metadata)
        except grpc.RpcError as error:
            raise refused_by_grpc(error) from error
        return read_message(response) | {"headers": dict(call.trailing_metadata())}


@dataclass
class JsonSender:
    """Sends and reads nested lists."""

    session: requests.Session
    url: str
    encoding = "json"

    def __call__(
        self, model: str, inputs: list[dict[str, Any]], *, shorthand: bool = False, **request: Any
    ) -> dict[str, Any]:
        document = {name: request.pop(name) for name in REQUEST & request.keys()}
        if "shared_mask" in request:
            document["mask"] = self.mask(request.pop("shared_mask"))
            shorthand = False
        sequences = [self.sequence(each) for each in inputs]
        document |= sequences[0] if shorthand else {"inputs": sequences}
        return self.post(model, document, **request)

    def post(self, model: str, document: Any, *, version: int = 0, **beside: Any) -> dict[str, Any]:
        if self.encoding != "json":
            document["encoding"] = self.encoding
        response = post(self.session, self.url, model, version, json=document, **beside)
        assert response.headers["content-type"] == "application/json"
        return read_document(response.json()) | {"headers": response.headers}

    def sequence(self, sequence: Mapping[str, Any]) -> dict[str, Any]:
        tensors = {name: self.tensor(sequence[name]) for name in TENSORS if name in sequence}
        mask = {"mask": self.mask(sequence["mask"])} if "mask" in sequence else {}
        return dict(sequence) | tensors | mask

    def mask(self, mask: Mapping[str, Any]) -> dict[str, Any]:
        return dict(mask) | {name: self.tensor(mask[name]) for name in ("allowed", "bias") & mask.keys()}

    def tensor(self, value: Any) -> Any:
        if isinstance(value, Raw):
            raw = {"data_type": value.data_type, "shape": value.shape, "data": base64.b64encode(value.data).decode()}
            return {name: content for name, content in raw.items() if not (name == "data_type" and content == 0)}
        if not value.ndim or (
            value.dtype.kind == "f" and not np.isfinite(value).all()
        ):  # JSON cannot express these numbers
            return Base64Sender.tensor(self, value)
        if value.dtype in (np.dtype("<f4"), np.dtype("?")):
            return value.tolist()
        return {"data_type": NAMES[value.dtype], "values": value.tolist()}


class Base64Sender(JsonSender):
    """Sends and reads the bytes of tensors in base64."""

    encoding = "base64"

    def tensor(self, value: Any) -> Any:
        return JsonSender.tensor(
            self, value if isinstance(value, Raw) else Raw(NAMES[value.dtype], value.shape, value.tobytes())
        )


@dataclass
class ProtobufSender:
    """Asks with attention.v1's messages over HTTP."""

    session: requests.Session
    url: str

    def __call__(
        self,
        model: str,
        inputs: list[dict[str, Any]],
        *,
        timeout: float | None = None,
        request_id: str = "",
        version: int = 0,
        **request: Any,
    ) -> dict[str, Any]:
        body = request_message(model, inputs, version=version, **request).SerializeToString()
        kind = "application/x-protobuf"
        headers = {"content-type": kind, "accept": kind}
        response = post(
            self.session, self.url, model, version, data=body, headers=headers, timeout=timeout, request_id=request_id
        )
        assert response.headers["content-type"] == kind
        return read_message(pb.AttendResponse.FromString(response.content)) | {"headers": response.headers}


def post(
    session: requests.Session,
    url: str,
    model: str,
    version: int = 0,
    *,
    timeout: float | None = None,
    request_id: str = "",
    headers: Mapping[str, str] | None = None,
    **content: Any,
) -> requests.Response:
    """Post to a model's `:attend`; raise Refused for an error."""
    sent = dict(headers or {})
    if timeout is not None:
        sent["X-Request-Timeout"] = str(timeout)
    if request_id:
        sent["X-Request-Id"] = request_id
    path = f"{model}/versions/{version}" if version else model
    response = session.post(f"{url}/v1/models/{path}:attend", headers=sent, timeout=HANG, **content)
    if response.status_code != 200:
        raise refused_by_http(response)
    return response
