"""Shared fixtures: a repository made once, a real server on it, and one way to call it over every transport."""

import base64
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
import requests
import serving
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceStub
from google.rpc.error_details_pb2 import BadRequest, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status
from serving import HANG, Server, made_repository, start_server

# The table of errors: gRPC's code, HTTP's status.
HTTP = {
    "INVALID_ARGUMENT": 400,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 413,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
}
DTYPES = {"BOOL": "?", "UINT16": "<u2", "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4"}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
TENSORS = ("query", "key", "value")
CAUSAL = {"none": 1, "top_left": 2, "bottom_right": 3}
REDUCE = {"none": 0, "mean": 1, "max": 2}
POOL = {"none": 0, "mean": 1, "first": 2, "last": 3}


class Raw(NamedTuple):
    """A tensor as it is written, right or wrong: the name or number of its type, its shape, its bytes."""

    data_type: str | int
    shape: tuple[int, ...]
    data: bytes


class TopK(NamedTuple):
    """The largest of each row."""

    indices: np.ndarray
    values: np.ndarray


@dataclass
class Refused(Exception):
    """A request was answered with an error.

    Attributes:
        code: the name of gRPC's code.
        http: HTTP's status; over gRPC the status of the code in the table.
        field: the path of the field at fault, as the transport names it.
        message: the words.
        request_id: the id that came with the error.
        retry_after: seconds.
    """

    code: str
    http: int
    field: str
    message: str
    request_id: str = ""
    retry_after: float | None = None

    def __str__(self) -> str:
        return f"{self.code} {self.http} at {self.field!r}: {self.message}"


def pytest_configure(config: pytest.Config) -> None:
    """Have processes that tests start obey SIGINT: a shell without job control ignores it in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the minutes of each folder of tests, set-up included; CONTRIBUTING.md has the budget of each."""
    minutes: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                minutes[str(Path(report.nodeid.partition("::")[0]).parent)] += report.duration / 60
    terminalreporter.section("minutes by folder")
    for folder, taken in [*minutes.most_common(), ("all", minutes.total())]:
        terminalreporter.write_line(f"{taken:6.1f}  {folder}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of a module that is marked `both_grpc_servers` over both servers of gRPC.

    A test marked `native_grpc(reason)` runs over the native one alone.
    """
    if metafunc.definition.get_closest_marker("both_grpc_servers"):
        kinds = ["native"] if metafunc.definition.get_closest_marker("native_grpc") else ["native", "grpcio"]
        if "grpc_server" not in metafunc.fixturenames:
            metafunc.fixturenames.insert(0, "grpc_server")
        metafunc.parametrize("grpc_server", kinds, indirect=True, scope="session")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Start the servers of a test, and of its fixtures, with what it is to be served by."""
    kind = getattr(getattr(item, "callspec", None), "params", {}).get("grpc_server", "")
    serving.GRPC_SERVER[:] = ["--grpc-server", kind] if kind else []


# --- one server for all ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def repository(request: pytest.FixtureRequest) -> Path:
    """A folder of models: small ones of every block with drawn weights, and the trained one that reads text."""
    return made_repository(request.config.cache.mkdir("repositories"))


@pytest.fixture(scope="session")
def dot_only(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of one small model."""
    folder = tmp_path_factory.mktemp("dot_only")
    (folder / "dot").symlink_to(repository / "dot")
    return folder


@pytest.fixture(scope="session")
def grpc_server(request: pytest.FixtureRequest) -> str:
    """What serves gRPC in the servers that a test starts; empty for the default."""
    return getattr(request, "param", "")


@pytest.fixture(scope="session")
def server(repository: Path, grpc_server: str) -> Iterator[Server]:
    """One server for all tests that do not change it."""
    with start_server(repository) as running:
        yield running


# --- one way to ask --------------------------------------------------------------------------------------------------


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
            for name in (*TENSORS, "text", "memory_text", "memory", "mask", "lengths") & request.keys()
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


@pytest.fixture(scope="session")
def connect() -> Iterator[Callable[[str, str, str], Transport]]:
    """Connect to a server in the way named: `connect("grpc", REST_ADDRESS, GRPC_ADDRESS)`."""
    channels: dict[str, grpc.Channel] = {}
    with requests.Session() as session:

        def connected(name: str, rest_address: str, grpc_address: str) -> Transport:
            if name == "grpc":
                if grpc_address not in channels:
                    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
                    channels[grpc_address] = grpc.insecure_channel(grpc_address, unlimited)
                return Transport(name, GrpcSender(AttentionServiceStub(channels[grpc_address])))
            sender = {"rest-json": JsonSender, "rest-base64": Base64Sender, "rest-protobuf": ProtobufSender}[name]
            return Transport(name, sender(session, f"http://{rest_address}"), shorthand=name == "rest-json")

        yield connected
        for channel in channels.values():
            channel.close()


TRANSPORTS = ("grpc", "rest-json", "rest-base64", "rest-protobuf")


@pytest.fixture(scope="session", params=TRANSPORTS)
def transport(request: pytest.FixtureRequest, server: Server, connect: Any) -> Transport:
    """Each transport in turn: a test that uses it holds for all."""
    return connect(request.param, server.rest, server.grpc)


# --- protobuf --------------------------------------------------------------------------------------------------------


def tensor(value: Any) -> pb.Tensor | None:
    """Write a tensor."""
    if value is None or isinstance(value, pb.Tensor):
        return value
    raw = value if isinstance(value, Raw) else Raw(NAMES[value.dtype], value.shape, value.tobytes())
    data_type = raw.data_type if isinstance(raw.data_type, int) else pb.DataType.Value(f"DATA_TYPE_{raw.data_type}")
    return pb.Tensor(data_type=data_type, shape=raw.shape, data=raw.data)


def mask_message(mask: Mapping[str, Any] | None) -> pb.Mask | None:
    if mask is None:
        return None
    window = pb.Mask.Window(**mask["window"]) if "window" in mask else None
    return pb.Mask(
        causal=CAUSAL[mask.get("causal", "none")],
        window=window,
        allowed=tensor(mask.get("allowed")),
        bias=tensor(mask.get("bias")),
    )


def output_message(spec: str | Mapping[str, Any]) -> pb.OutputSpec:
    content = {"name": spec} if isinstance(spec, str) else dict(spec)
    content["alias"] = content.pop("as", "")
    content["reduce"] = REDUCE[content.get("reduce", "none")]
    content["pool"] = POOL[content.get("pool", "none")]
    content["data_type"] = pb.DataType.Value(f"DATA_TYPE_{content.get('data_type', 'UNSPECIFIED')}")
    return pb.OutputSpec(**content)


def request_message(
    model: str,
    inputs: list[dict[str, Any]],
    *,
    version: int = 0,
    outputs: Any = (),
    shared_mask: Any = None,
    token_offsets: bool = False,
) -> pb.AttendRequest:
    """Write a request as it is told, right or wrong."""
    sequences = [
        pb.Sequence(
            **{name: tensor(sequence.get(name)) for name in TENSORS},
            text=sequence.get("text"),
            memory_text=sequence.get("memory_text"),
            memory=sequence.get("memory", ""),
            mask=mask_message(sequence.get("mask")),
            lengths=sequence.get("lengths", ()),
        )
        for sequence in inputs
    ]
    return pb.AttendRequest(
        model=model,
        version=version,
        inputs=sequences,
        outputs=[output_message(spec) for spec in outputs],
        mask=mask_message(shared_mask),
        token_offsets=token_offsets,
    )


def array_of(message: pb.Tensor) -> np.ndarray:
    """Read a tensor."""
    name = pb.DataType.Name(message.data_type).removeprefix("DATA_TYPE_")
    return np.frombuffer(message.data, DTYPES[name]).reshape(message.shape)


def read_message(response: pb.AttendResponse) -> dict[str, Any]:
    """Read a response."""
    return {
        "model": response.model,
        "version": response.version,
        "results": [
            {
                "outputs": {
                    output.name: array_of(output.tensor)
                    if output.HasField("tensor")
                    else TopK(array_of(output.top_k.indices), array_of(output.top_k.values))
                    for output in result.outputs
                },
                "tokens": list(result.tokens),
                "memory_tokens": list(result.memory_tokens),
                "token_offsets": [(span.start, span.end) for span in result.token_offsets],
                "memory_token_offsets": [(span.start, span.end) for span in result.memory_token_offsets],
                "predictions": [
                    {"name": each.name, "label": each.label, "probability": each.probability}
                    | ({"row": each.row} if each.HasField("row") else {})
                    for each in result.predictions
                ],
            }
            for result in response.results
        ],
    }


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


def refused_by_grpc(error: Any) -> Refused:
    """Read a call's error, its details included."""
    refused = Refused(error.code().name, HTTP.get(error.code().name, 0), "", error.details())
    refused.request_id = dict(error.trailing_metadata() or ()).get("x-request-id", "")
    status = rpc_status.from_call(error)
    read_details(status.details if status else (), refused)
    return refused


def refused_by_protobuf(response: requests.Response) -> Refused:
    """Read an error answer that is a google.rpc.Status."""
    status = Status.FromString(response.content)
    code = next(each.name for each in grpc.StatusCode if each.value[0] == status.code)
    refused = Refused(code, response.status_code, "", status.message, response.headers["x-request-id"])
    read_details(status.details, refused)
    return refused


def read_details(details: Any, refused: Refused) -> None:
    """Read the details of an error: the field, the id, the time to retry."""
    for packed in details:
        for kind in (BadRequest, RequestInfo, RetryInfo):
            detail = kind()
            if not packed.Unpack(detail):
                continue
            if isinstance(detail, BadRequest):
                refused.field = detail.field_violations[0].field
            elif isinstance(detail, RequestInfo):
                assert detail.request_id == refused.request_id
            else:
                refused.retry_after = detail.retry_delay.ToTimedelta().total_seconds()


# --- JSON ------------------------------------------------------------------------------------------------------------


@dataclass
class JsonSender:
    """Sends and reads nested lists."""

    session: requests.Session
    url: str
    encoding = "json"

    def __call__(
        self, model: str, inputs: list[dict[str, Any]], *, shorthand: bool = False, **request: Any
    ) -> dict[str, Any]:
        document = {name: request.pop(name) for name in ("outputs", "token_offsets") & request.keys()}
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


def refused_by_http(response: requests.Response) -> Refused:
    """Read an error answer; it must be one in form."""
    if response.headers["content-type"] == "application/x-protobuf":
        return refused_by_protobuf(response)
    assert response.headers["content-type"] == "application/json", response.text
    error = response.json()["error"]
    assert error.keys() <= {"code", "status", "message", "request_id", "field"}
    assert error["code"] == response.status_code
    retry_after = response.headers.get("retry-after")
    refused = Refused(
        error["status"],
        response.status_code,
        error.get("field", ""),
        error["message"],
        error["request_id"],
        None if retry_after is None else float(retry_after),
    )
    assert refused.http == HTTP.get(refused.code) or refused.http == 405, refused
    return refused


def read_document(document: Any) -> dict[str, Any]:
    """Read a response of JSON; absent lists are empty."""

    def spans(result: Any, name: str) -> list[tuple[int, int]]:
        return [(span["start"], span["end"]) for span in result.get(name, [])]

    return document | {
        "results": [
            {
                "outputs": {name: read_output(output) for name, output in result["outputs"].items()},
                "tokens": result.get("tokens", []),
                "memory_tokens": result.get("memory_tokens", []),
                "token_offsets": spans(result, "token_offsets"),
                "memory_token_offsets": spans(result, "memory_token_offsets"),
                "predictions": result.get("predictions", []),
            }
            for result in document["results"]
        ]
    }


def read_output(output: Any) -> np.ndarray | TopK:
    if "indices" in output:
        return TopK(read_output(output["indices"]), read_output(output["values"]))
    dtype = DTYPES[output["data_type"]]
    if "data" in output:
        return np.frombuffer(base64.b64decode(output["data"]), dtype).reshape(output["shape"])
    array = np.array(output["values"], dtype)
    assert list(array.shape) == output["shape"]
    return array


@contextmanager
def refused(code: str, field: str | None = None, *words: str) -> Iterator[Any]:
    """Expect a refusal with this code, at this field, and with these words in its message."""
    with pytest.raises(Refused) as caught:
        yield caught
    error = caught.value
    assert error.code == code, error
    if field is not None:
        assert error.field == field, error
    for word in words:
        assert word in error.message, error
