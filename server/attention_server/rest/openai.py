"""The embeddings of OpenAI's API, `/v1/embeddings`: decode a request, submit it, encode the response."""

from starlette.requests import Request
from starlette.responses import Response as HttpResponse
from starlette.routing import Route

from attention_server.codecs import openai
from attention_server.domain.messages import EmbeddingsRequest
from attention_server.rest.exchange import EMBEDDINGS, JSON, JSON_COPIES, Exchange, answers, call_of
from attention_server.service.service import Service
from attention_server.transport.futures import wait_until_deadline
from attention_server.transport.offload import (
    INLINE_BYTES,
    INLINE_JSON_TENSOR_BYTES,
    is_large_json,
    should_offload,
)


class EmbeddingsRoutes:
    """Answers `/v1/embeddings`.

    Args:
        service: the core.
        exchange: reads bodies and awaits answers.
    """

    def __init__(self, service: Service, exchange: Exchange) -> None:
        self._service = service
        self._exchange = exchange

    def routes(self) -> list[Route]:
        """Return the route."""
        return [Route(EMBEDDINGS, answers(self.create_embeddings), methods=["POST"])]

    async def create_embeddings(self, request: Request) -> HttpResponse:
        call = call_of(request)
        service, threads = self._service, self._exchange.threads

        async def handle(body: bytes) -> HttpResponse:
            def decode() -> tuple[EmbeddingsRequest, openai.Encoding]:
                return openai.decode_request(body, service.limits)

            large = is_large_json(body)
            decoded, encoding = await self._exchange.decode_large(body, call.lease, decode) if large else decode()
            takes_long = should_offload(len(body), len(decoded.inputs), text=True)
            future = await threads.run_if(takes_long, lambda: service.submit_embeddings(decoded, call))
            response = await wait_until_deadline(future, call)
            bound = INLINE_BYTES if encoding == "base64" else INLINE_JSON_TENSOR_BYTES
            if response.size > bound:
                call.lease.grow(JSON_COPIES * response.size)
            content = await threads.run_if(response.size > bound, lambda: openai.encode_response(response, encoding))
            return HttpResponse(content, media_type=JSON)

        return await self._exchange.compute(request, call, handle)
