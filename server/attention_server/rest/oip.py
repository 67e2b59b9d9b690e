"""The Open Inference Protocol over HTTP, `/v2`: translate, call, translate."""

import functools
import zlib
from collections.abc import Callable, Iterable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from attention_server.codecs.document import Json, fields, parse, typed
from attention_server.codecs.duplicates import refuse_duplicates
from attention_server.codecs.oip import json as oip_json
from attention_server.codecs.oip import mapping, rules
from attention_server.codecs.oip import models as oip_models
from attention_server.codecs.oip.messages import Parameters
from attention_server.domain.call import CallContext
from attention_server.errors import Unimplemented
from attention_server.rest.exchange import JSON, Exchange, Handler, answers, call_of, json_response, version_of
from attention_server.service.service import Service

BINARY = "application/octet-stream"
NOT_OFFERED = (
    "/v2/systemsharedmemory/{rest:path}",
    "/v2/cudasharedmemory/{rest:path}",
    "/v2/trace/setting",
    "/v2/models/{model}/trace/setting",
    "/v2/logging",
)


class InferenceRoutes:
    """Answers `/v2` from the core.

    Args:
        service: the core.
        exchange: reads bodies, and gives work a thread.
        ready: whether the server answers requests, and is not stopping.
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
        """Return the routes of what the protocol has and this server does not."""
        return [_route(path, self.not_offered, "GET", "POST") for path in NOT_OFFERED]

    async def server_metadata(self, request: Request) -> Response:
        return json_response(oip_models.server())

    async def server_live(self, request: Request) -> Response:
        return json_response({"live": True})

    async def server_ready(self, request: Request) -> Response:
        ready = self._ready()
        return json_response({"ready": ready}, 200 if ready else 503)

    async def model_metadata(self, request: Request) -> Response:
        return json_response(oip_models.metadata(self._service.model(_model(request), version_of(request))))

    async def model_ready(self, request: Request) -> Response:
        ready = self._service.is_ready(_model(request), version_of(request))
        return json_response({"name": _model(request), "ready": ready}, 200 if ready else 503)

    async def model_config(self, request: Request) -> Response:
        return json_response(oip_models.config(self._service.model(_model(request), version_of(request))))

    async def model_statistics(self, request: Request) -> Response:
        model = request.path_params.get("model", "")
        return json_response(oip_models.statistics(self._service.statistics(model, version_of(request))))

    async def model_infer(self, request: Request) -> Response:
        call = call_of(request)
        work = functools.partial(self._infer, request=request, version=version_of(request), call=call)
        return await self._exchange.compute(request, call, work)

    async def repository_index(self, request: Request) -> Response:
        return await self._exchange.answer(request, call_of(request), self._index)

    async def repository_model_load(self, request: Request) -> Response:
        return await self._change(request, self._load)

    async def repository_model_unload(self, request: Request) -> Response:
        return await self._change(request, self._unload)

    async def _change(self, request: Request, change: Callable[[str, CallContext, bytes], Response]) -> Response:
        call = call_of(request)
        return await self._exchange.answer(request, call, functools.partial(change, _model(request), call))

    async def not_offered(self, request: Request) -> Response:
        raise Unimplemented(oip_models.NOT_OFFERED)

    def _infer(self, body: bytes, request: Request, version: int, call: CallContext) -> Response:
        header_length = request.headers.get(oip_json.HEADER_LENGTH)
        infer = oip_json.decode_request(body, header_length, _model(request), version)
        domain_request = mapping.to_domain(infer, self._service.limits)
        call.shorten_deadline(rules.timeout(infer.parameters))
        with rules.protocol_field_names():
            response = self._service.attend(domain_request, call)
        answer = mapping.from_domain(response, infer, self._service.limits)
        content, json_length = oip_json.encode_response(answer, infer)
        headers = {oip_json.HEADER_LENGTH: str(json_length)} if json_length < len(content) else {}
        content, encoding = _compress(content, request.headers.get("accept-encoding", ""))
        return Response(content, headers=headers | encoding, media_type=BINARY if headers else JSON)

    def _index(self, body: bytes) -> Response:
        ready = typed(_fields(body, ("ready",)), "ready", bool, False, "")
        return json_response(oip_models.index(self._service.index(), ready=ready))

    def _load(self, model: str, call: CallContext, body: bytes) -> Response:
        oip_models.check_load(_parameters(body))
        self._service.load_model(model, call)
        return json_response({})

    def _unload(self, model: str, call: CallContext, body: bytes) -> Response:
        oip_models.check_unload(_parameters(body))
        self._service.unload_model(model, call)
        return json_response({})


def _route(path: str, handler: Handler, *methods: str) -> Route:
    return Route(path, answers(handler), methods=list(methods))


def _routes(end: str, handler: Handler, method: str) -> Iterable[Route]:
    """Yield what is offered of a model at its default version and at each."""
    yield _route(f"/v2/models/{{model}}{end}", handler, method)
    yield _route(f"/v2/models/{{model}}/versions/{{version}}{end}", handler, method)


def _model(request: Request) -> str:
    return str(request.path_params["model"])


def _fields(body: bytes, known: tuple[str, ...]) -> Json:
    """Read a body that may be empty."""
    if not body.strip():
        return {}
    content = fields(parse(body), "", known)
    refuse_duplicates(body, content)
    return content


def _parameters(body: bytes) -> Parameters:
    return oip_json.parameters_of(_fields(body, ("parameters",)), "")


def _compress(content: bytes, accepted: str) -> tuple[bytes, dict[str, str]]:
    """Compress what is asked for in one encoding alone, as Triton's client asks.

    Libraries that list all they could read get it plain: floats shrink little, and slowly.
    """
    name = accepted.strip().lower()
    if name not in ("gzip", "deflate"):
        return content, {}
    packer = zlib.compressobj(1, wbits=zlib.MAX_WBITS | (16 if name == "gzip" else 0))
    return packer.compress(content) + packer.flush(), {"content-encoding": name}
