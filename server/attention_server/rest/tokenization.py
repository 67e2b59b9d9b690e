"""`:tokenize` over REST: decode a request, tokenize its texts, encode the answer."""

from attention_proto.attention.v1 import attention_pb2 as pb
from starlette.requests import Request
from starlette.responses import Response as HttpResponse
from starlette.routing import Route

from attention_server.codecs import tokenization
from attention_server.codecs.url import url_or_body
from attention_server.domain.tokenization import TokenizeRequest
from attention_server.rest.attention import parse_protobuf, sends_protobuf
from attention_server.rest.exchange import JSON, PROTOBUF, Exchange, answers, call_of, version_of, wants_protobuf
from attention_server.service.service import Service
from attention_server.transport.futures import wait_until_deadline
from attention_server.transport.offload import INLINE_TEXT_BYTES


class TokenizationRoutes:
    """Answers `/v1/models/{model}:tokenize`.

    Args:
        service: the core.
        exchange: reads bodies and awaits answers.
    """

    def __init__(self, service: Service, exchange: Exchange) -> None:
        self._service = service
        self._exchange = exchange

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/v1/models/{model}:tokenize", answers(self.tokenize), methods=["POST"]),
            Route("/v1/models/{model}/versions/{version}:tokenize", answers(self.tokenize), methods=["POST"]),
        ]

    async def tokenize(self, request: Request) -> HttpResponse:
        call, service = call_of(request), self._service
        model, version = request.path_params["model"], version_of(request)
        is_protobuf, as_protobuf = sends_protobuf(request), wants_protobuf(request)

        def decode(body: bytes) -> TokenizeRequest:
            if not is_protobuf:
                return tokenization.decode_json(body, model, version, service.limits)
            message = parse_protobuf(pb.TokenizeRequest, body, call.lease)
            message.model = url_or_body("model", model, message.model)
            message.version = url_or_body("version", version, message.version)
            return tokenization.decode_proto(message, service.limits)

        async def handle(body: bytes) -> HttpResponse:
            large = len(body) > INLINE_TEXT_BYTES
            decoded = (
                await self._exchange.decode_large(body, call.lease, lambda: decode(body)) if large else decode(body)
            )
            found = await wait_until_deadline(service.submit_tokenize(decoded, call), call)
            encode = tokenization.encode_proto if as_protobuf else tokenization.encode_json
            content = await self._exchange.threads.run_if(found.takes_long, lambda: encode(found))
            return HttpResponse(content, media_type=PROTOBUF if as_protobuf else JSON)

        return await self._exchange.compute(request, call, handle)
