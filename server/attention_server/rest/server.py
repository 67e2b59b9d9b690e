"""The HTTP server: every route, and the uvicorn server."""

import asyncio
import functools
import math
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.resources import files

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from swagger_ui_bundle import swagger_ui_path

from attention_server.auth.callers import Callers
from attention_server.auth.certificates import Certificates, http_context
from attention_server.auth.hosts import HostPolicy, is_loopback
from attention_server.codecs import prometheus
from attention_server.codecs.errors import status_name
from attention_server.rest.attention import AttentionRoutes
from attention_server.rest.connection import Connection
from attention_server.rest.exchange import JSON, Exchange, answers, error_document, record_of
from attention_server.rest.middleware import ObservingMiddleware
from attention_server.rest.oip import InferenceRoutes
from attention_server.rest.openai import EmbeddingsRoutes
from attention_server.rest.page import page_routes
from attention_server.rest.tokenization import TokenizationRoutes
from attention_server.service.service import SPARE_THREADS, Service
from attention_server.telemetry import logs
from attention_server.transport.listener import Listener
from attention_server.transport.peer_turns import PeerTurns
from attention_server.transport.sockets import listen, max_connections
from attention_server.transport.threads import Threads

DOCS_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><title>Attention Service</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="docs/assets/favicon-32x32.png">
<link rel="stylesheet" href="docs/assets/swagger-ui.css">
<style>
:root { color-scheme: light dark; }
:root[data-theme="light"] { color-scheme: light; }
:root[data-theme="dark"] { color-scheme: dark; }
body { margin: 0; font: 15px system-ui, sans-serif; }
body { background: light-dark(#ffffff, #101319); color: light-dark(#1c2027, #e9ebf0); }
.back { display: block; max-width: 1460px; margin: 0 auto; padding: 1rem 20px 0; color: inherit; }
</style>
</head>
<body>
<a class="back" href="./">The page of this server</a>
<div id="swagger-ui"></div>
<script src="docs/assets/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
# The colours of the page's theme: the one chosen there, else the system's. The viewer has light ones, which are turned.
DOCS_START = """const chosen = localStorage.getItem("attention.theme");
if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
const system = matchMedia("(prefers-color-scheme: dark)");
const shade = () => {
  const dark = chosen ? chosen === "dark" : system.matches;
  document.getElementById("swagger-ui").style.filter = dark ? "invert(0.92) hue-rotate(180deg)" : "";
};
shade();
system.addEventListener("change", shade);
window.ui = SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", validatorUrl: null});
"""
DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'"
)


class Name(StringConvertor):
    """A path segment up to a colon, which begins a verb: GET of `...:attend` is answered with 405."""

    regex = "[^/:]+"


register_url_convertor("str", Name())

EXPOSITION_SECONDS = 0.05  # from one text of the metrics to the next, however many requests for it there are


class HealthRoutes:
    """Health checks: `/healthz` for liveness; `/readyz` for a first load that has ended, and no stop begun.

    Versions may have been refused by the load; the index of the repository has the state of each.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self.stopping = False

    def routes(self) -> list[Route]:
        """Return the routes of `/healthz` and `/readyz`."""
        return [Route("/healthz", self.alive), Route("/readyz", self.ready)]

    def is_ready(self) -> bool:
        """Return whether the server is ready."""
        return self._service.ready and not self.stopping

    async def alive(self, request: Request) -> Response:
        return Response('{"status":"alive"}', media_type=JSON)

    async def ready(self, request: Request) -> Response:
        absent = "loading" if self._service.is_loading else "empty"  # no model can be served
        status = "stopping" if self.stopping else "ready" if self._service.ready else absent
        return Response(f'{{"status":"{status}"}}', 200 if status == "ready" else 503, media_type=JSON)


def docs_routes() -> list[Route | Mount]:
    """Return the routes of the OpenAPI document and its viewer, which loads files of this server only."""
    document = orjson.loads(files(__package__).joinpath("openapi.json").read_bytes())
    document["info"]["version"] = version("attention-service")
    content = orjson.dumps(document)

    async def openapi(request: Request) -> Response:
        return Response(content, media_type=JSON)

    async def page(request: Request) -> Response:
        return Response(DOCS_PAGE, media_type="text/html", headers={"content-security-policy": DOCS_POLICY})

    async def start(request: Request) -> Response:
        return Response(DOCS_START, media_type="text/javascript")

    return [
        Route("/openapi.json", openapi),
        Route("/docs", page),
        Route("/docs/start.js", start),
        Mount("/docs/assets", StaticFiles(directory=swagger_ui_path)),
    ]


async def plain_error(request: Request, error: Exception) -> Response:
    """Return the error document of the path's protocol for an HTTPException of the router: status 404 or 405."""
    assert isinstance(error, HTTPException)
    message = {404: f"there is no {request.url.path[:256]}; see /docs", 405: f"{request.method} is not offered here"}
    content = {
        "code": error.status_code,
        "status": status_name(error.status_code),
        "message": message.get(error.status_code, error.detail),
        "request_id": record_of(request).request_id,
    }
    return Response(orjson.dumps(error_document(request, {"error": content})), error.status_code, error.headers, JSON)


class RestServer:
    """The HTTP server, on one event loop.

    Args:
        service: the service behind every route.
        host: the address to listen on.
        port: the port to listen on; 0 picks a free one.
        requests: the most requests that run or wait at once.
        max_message_bytes: the largest body.
        grace: seconds that a stop waits for running requests.
        callers: the known callers.
        certificates: certificates for TLS; None for plain HTTP.
        allowed_hosts: names in Host headers that are accepted beside loopback's; empty for the default.

    Raises:
        OSError: the address is not available.
    """

    def __init__(
        self,
        service: Service,
        host: str,
        port: int,
        *,
        requests: int,
        max_message_bytes: int,
        grace: float,
        callers: Callers,
        certificates: Certificates | None = None,
        allowed_hosts: Collection[str] = (),
    ) -> None:
        self._service = service
        self._certificates = certificates
        self._socket = listen("REST", host, port)
        self._exposition: asyncio.Future[bytes] | None = None  # of the metrics, while it is written
        self._exposed = -EXPOSITION_SECONDS  # when the last one began
        self._threads = Threads(requests + SPARE_THREADS, "rest")
        self._health = HealthRoutes(service)
        exchange = Exchange(self._threads, max_message_bytes, service.admission)
        attention = AttentionRoutes(service, exchange)
        inference = InferenceRoutes(service, exchange, self._health.is_ready)
        application = Starlette(
            routes=[
                *attention.routes(),
                *TokenizationRoutes(service, exchange).routes(),
                *EmbeddingsRoutes(service, exchange).routes(),
                *inference.routes(),
                *inference.refusals(),
                *self._health.routes(),
                Route("/metrics", answers(self.metrics)),
                *docs_routes(),
                *page_routes(),
            ],
            exception_handlers={HTTPException: plain_error},
            middleware=[
                Middleware(
                    ObservingMiddleware,
                    HostPolicy(is_loopback(host), frozenset(allowed_hosts)),
                    callers,
                    certificates is not None and certificates.mutual,
                    service.observer,
                    service.account,
                )
            ],
        )
        self.routes = application.routes
        by_host: Counter[str] = Counter()
        turns = PeerTurns()
        connect = functools.partial(Connection, account=service.account, by_host=by_host, turns=turns)
        config = uvicorn.Config(
            application,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(grace),
            http=connect,  # type: ignore[arg-type] # it is called alone
            ws="none",
            proxy_headers=False,  # any caller can send the headers of a proxy
        )
        self._server = _Server(config, http_context(certificates) if certificates else None, connect, by_host, turns)
        self.port: int = self._socket.getsockname()[1]

    def start(self) -> None:
        """Begin to accept connections, on the running loop."""
        self._serving = asyncio.create_task(self._server.serve([self._socket]))

    def set_stopping(self) -> None:
        """Report that the server is not ready, and go on serving."""
        self._health.stopping = True

    async def stop(self) -> None:
        """Accept no more connections, and finish accepted requests within the grace period."""
        self.set_stopping()
        self._server.should_exit = True
        await self._serving
        self._threads.close()

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered; may be read in any thread."""
        return self._health.is_ready()

    @property
    def is_idle(self) -> bool:
        """Whether every thread is idle."""
        return self._threads.is_idle

    async def metrics(self, request: Request) -> Response:
        if self._exposition is None:  # requests at the same time share one
            self._exposition = asyncio.ensure_future(self._write_metrics())
            self._exposition.add_done_callback(self._end_exposition)
        return Response(await asyncio.shield(self._exposition), media_type=prometheus.CONTENT_TYPE)

    async def _write_metrics(self) -> bytes:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._exposed + EXPOSITION_SECONDS - loop.time()))
        self._exposed = loop.time()
        return await run_in_threadpool(self._expose)

    def _expose(self) -> bytes:
        return prometheus.exposition(_snapshot(self._service, self._certificates))

    def _end_exposition(self, _: "asyncio.Future[bytes]") -> None:
        self._exposition = None


def _snapshot(service: Service, certificates: Certificates | None) -> prometheus.Snapshot:
    scheduler, memories, account = service.state()
    versions, requests = service.observer.statistics.all()
    return prometheus.Snapshot(
        ready=service.ready,
        scheduler=scheduler,
        memories=memories,
        account=account,
        versions=versions,
        requests=requests,
        open_records=service.observer.open_records(),
        index=service.index(),
        residency=service.residency(),
        log_losses=logs.losses(),
        certificate_expires=certificates.current().expires if certificates else None,
    )


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers, and with connections accepted by `Listener`.

    Args:
        config: Uvicorn's configuration.
        context: the TLS context; None for plain HTTP.
        connect: makes a connection.
        by_host: counts connections by address.
        turns: of the event loop, which the connections share.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        context: ssl.SSLContext | None,
        connect: Callable[..., Connection],
        by_host: Counter[str],
        turns: PeerTurns,
    ) -> None:
        super().__init__(config)
        self._new_connection = connect
        self._by_host = by_host
        self._turns = turns
        self._context = context
        self._listener: Listener | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections from the one socket."""
        assert sockets is not None
        await super().startup([])  # everything but accepting
        connections = self.server_state.connections
        self._listener = Listener(
            sockets[0],
            self._context,
            self._connect,
            lambda: len(connections),
            self._by_host,
            max_connections(),
            self._turns,
        )
        self._listener.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more connections, and wait for open requests."""
        if self._listener:
            await self._listener.close()
        await super().shutdown(sockets)

    def _connect(self) -> Connection:
        return self._new_connection(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
