"""The Open Inference Protocol over HTTP, `/v2`: decode a request, submit it, encode the response."""

import functools
import zlib
from collections.abc import Callable, Iterable

from starlette.requests import Request
from starlette.responses import Response as HttpResponse
from starlette.routing import Route

from attention_server.codecs.document import Json, fields, parse, typed
from attention_server.codecs.duplicates import refuse_duplicates
from attention_server.codecs.oip import json as oip_json
from attention_server.codecs.oip import mapping, rules
from attention_server.codecs.oip import models as oip_models
from attention_server.codecs.oip.messages import InferRequest, Parameters
from attention_server.domain.call import CallContext
from attention_server.domain.messages import Response
from attention_server.errors import InvalidRequest, Unimplemented
from attention_server.rest.exchange import (
    COPIES,
    JSON,
    JSON_COPIES,
    Exchange,
    Handler,
    answers,
    call_of,
    json_response,
    version_of,
)
from attention_server.scheduling.future import Future
from attention_server.service.service import Service
from attention_server.transport.futures import wait_until_deadline
from attention_server.transport.offload import INLINE_BYTES, INLINE_JSON_TENSOR_BYTES, is_large_json, should_offload

BINARY = "application/octet-stream"
NOT_OFFERED = (
    "/v2/systemsharedmemory/{rest:path}",
    "/v2/cudasharedmemory/{rest:path}",
    "/v2/trace/setting",
    "/v2/models/{model}/trace/setting",
    "/v2/logging",
)


class InferenceRoutes:
    """Answers `/v2`.

    Args:
        service: the core.
        exchange: reads bodies and awaits answers.
        ready: returns whether the server answers requests and is not stopping.
    """

    def __init__(self, service: Service, exchange: Exchange, ready: Callable[[], bool]) -> None:
        self._service = service
        self._exchange = exchange
        self._ready = ready

    def routes(self) -> list[Route]:
        """Return the routes of `/v2`."""
        repository = "/v2/repository/models/{model}"
        return [
            _route("/v2", self.server_metadata, "GET"),
            _route("/v2/health/live", self.server_live, "GET"),
            _route("/v2/health/ready", self.server_ready, "GET"),
            _route("/v2/repository/index", self.repository_index, "POST"),
            _route(f"{repository}/load", self.repository_model_load, "POST"),
            _route(f"{repository}/unload", self.repository_model_unload, "POST"),
            _route("/v2/models/stats", self.model_statistics, "GET"),
            *_routes("/stats", self.model_statistics, "GET"),
            *_routes("", self.model_metadata, "GET"),
            *_routes("/ready", self.model_ready, "GET"),
            *_routes("/config", self.model_config, "GET"),
            *_routes("/infer", self.model_infer, "POST"),
        ]

    def refusals(self) -> list[Route]:
        """Return the routes of the protocol that are not offered."""
        return [_route(path, self.not_offered, "GET", "POST") for path in NOT_OFFERED]

    async def server_metadata(self, request: Request) -> HttpResponse:
        return json_response(oip_models.server())

    async def server_live(self, request: Request) -> HttpResponse:
        return json_response({"live": True})

    async def server_ready(self, request: Request) -> HttpResponse:
        ready = self._ready()
        return json_response({"ready": ready}, 200 if ready else 503)

    async def model_metadata(self, request: Request) -> HttpResponse:
        return json_response(oip_models.metadata(self._service.model(_model(request), version_of(request))))

    async def model_ready(self, request: Request) -> HttpResponse:
        name, version = _model(request), version_of(request)
        # In mode explicit the folder is read.
        ready = await self._exchange.threads.run(lambda: self._service.is_ready(name, version))
        return json_response({"name": name, "ready": ready}, 200 if ready else 503)

    async def model_config(self, request: Request) -> HttpResponse:
        return json_response(oip_models.config(self._service.model(_model(request), version_of(request))))

    async def model_statistics(self, request: Request) -> HttpResponse:
        model = request.path_params.get("model", "")
        return json_response(oip_models.statistics(self._service.statistics(model, version_of(request))))

    async def model_infer(self, request: Request) -> HttpResponse:
        call = call_of(request)
        lengths = request.headers.getlist(oip_json.HEADER_LENGTH)
        if len(lengths) > 1:
            raise InvalidRequest(f"send it once; there are {len(lengths)}", field=oip_json.HEADER_LENGTH)
        header_length = lengths[0] if lengths else None
        decode_infer = functools.partial(
            oip_json.decode_request, header_length=header_length, model=_model(request), version=version_of(request)
        )
        accepted = request.headers.get("accept-encoding", "")

        async def handle(body: bytes) -> HttpResponse:
            threads = self._exchange.threads
            if len(body) > INLINE_BYTES if header_length else is_large_json(body):
                infer, future = await self._exchange.decode_large(
                    body, call.lease, lambda: self._submit(decode_infer(body), call)
                )
            else:
                infer = decode_infer(body)
                takes_long = _should_offload(infer, len(body))
                _, future = await threads.run_if(takes_long, lambda: self._submit(infer, call))
            response = await wait_until_deadline(future, call)
            bound = INLINE_BYTES if header_length else INLINE_JSON_TENSOR_BYTES
            if response.size > bound:
                call.lease.grow(response.size * (COPIES if header_length else JSON_COPIES))
            return await threads.run_if(response.size > bound, lambda: self._write(response, infer, accepted))

        return await self._exchange.compute(request, call, handle)

    async def repository_index(self, request: Request) -> HttpResponse:
        async def handle(body: bytes) -> HttpResponse:
            ready = typed(_fields(body, ("ready",)), "ready", bool, False, "")
            entries = await self._exchange.threads.run(self._service.index)  # in mode explicit the folder is read
            return json_response(oip_models.index(entries, ready=ready))

        return await self._exchange.answer(request, call_of(request), handle)

    async def repository_model_load(self, request: Request) -> HttpResponse:
        return await self._change(request, oip_models.check_load, self._service.load_model)

    async def repository_model_unload(self, request: Request) -> HttpResponse:
        return await self._change(request, oip_models.check_unload, self._service.unload_model)

    async def _change(
        self, request: Request, check: Callable[[Parameters], None], change: Callable[[str, CallContext], None]
    ) -> HttpResponse:
        call = call_of(request)
        model = _model(request)

        async def handle(body: bytes) -> HttpResponse:
            check(_parameters(body))
            await self._exchange.threads.run(lambda: change(model, call))
            return json_response({})

        return await self._exchange.answer(request, call, handle)

    async def not_offered(self, request: Request) -> HttpResponse:
        raise Unimplemented(oip_models.NOT_OFFERED)

    def _submit(self, infer: InferRequest, call: CallContext) -> "tuple[InferRequest, Future[Response]]":
        request = mapping.to_domain(infer, self._service.limits)
        call.shorten_deadline(rules.timeout(infer.parameters))
        with rules.protocol_field_names():
            return infer, self._service.submit(request, call)

    def _write(self, response: Response, infer: InferRequest, accepted: str) -> HttpResponse:
        answer = mapping.from_domain(response, infer, self._service.limits)
        content, json_length = oip_json.encode_response(answer, infer)
        headers = {oip_json.HEADER_LENGTH: str(json_length)} if json_length < len(content) else {}
        content, encoding = _compress(content, accepted)
        return HttpResponse(content, headers=headers | encoding, media_type=BINARY if headers else JSON)


def _route(path: str, handler: Handler, *methods: str) -> Route:
    return Route(path, answers(handler), methods=list(methods))


def _routes(end: str, handler: Handler, method: str) -> Iterable[Route]:
    """Yield the routes of a model: of its default version, and of each version."""
    yield _route(f"/v2/models/{{model}}{end}", handler, method)
    yield _route(f"/v2/models/{{model}}/versions/{{version}}{end}", handler, method)


def _model(request: Request) -> str:
    return str(request.path_params["model"])


def _should_offload(infer: InferRequest, size: int) -> bool:
    sequences = max([len(array) for array in infer.inputs.values() if array.ndim], default=1)
    text = any(array.dtype == object for array in infer.inputs.values())
    return should_offload(size, sequences, text=text)


def _fields(body: bytes, known: tuple[str, ...]) -> Json:
    """Parse a body that may be empty."""
    if not body.strip():
        return {}
    content = fields(parse(body), "", known)
    refuse_duplicates(body, content)
    return content


def _parameters(body: bytes) -> Parameters:
    return oip_json.parameters_of(_fields(body, ("parameters",)), "")


def _compress(content: bytes, accepted: str) -> tuple[bytes, dict[str, str]]:
    """Compress a body for callers that accept exactly one encoding, such as Triton's client.

    Callers that list several encodings get plain bytes: floats shrink little, and slowly.
    """
    name = accepted.strip().lower()
    if name not in ("gzip", "deflate"):
        return content, {}
    packer = zlib.compressobj(1, wbits=zlib.MAX_WBITS | (16 if name == "gzip" else 0))
    return packer.compress(content) + packer.flush(), {"content-encoding": name}
