"""Middleware of every HTTP request: its record, its Host header, its caller's credentials and limits."""

from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from attention_server.auth.callers import PUBLIC_PATHS, Caller, Callers
from attention_server.auth.hosts import HostPolicy
from attention_server.budget.account import Account, Lease
from attention_server.budget.current import current_lease
from attention_server.codecs import orca
from attention_server.codecs.errors import status_name
from attention_server.domain.request_record import OK, REQUEST_ID, SERVER_TIMING, RequestRecord, request_id
from attention_server.errors import AttentionServiceError, PermissionDenied, Unauthenticated
from attention_server.rest import page
from attention_server.rest.exchange import REQUEST_BYTES, error_response
from attention_server.telemetry.load import LoadMeter
from attention_server.telemetry.observer import Observer

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
# Paths that need no credentials; a path matches only as a whole.
PUBLIC = PUBLIC_PATHS | page.PATHS


class ObservingMiddleware:
    """Records requests and admits callers.

    Requests for health and for the page's own files need no credentials and are not counted.

    Args:
        app: the application behind it.
        hosts: the accepted Host headers.
        callers: the known callers.
        mutual: whether callers must show a client certificate.
        observer: counts, traces and logs the requests.
        account: counts their bytes.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: HostPolicy,
        callers: Callers,
        mutual: bool,
        observer: Observer,
        account: Account,
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._callers = callers
        self._mutual = mutual
        self._observer = observer
        self._account = account

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        if scope["path"] in PUBLIC:
            request.state.record = RequestRecord(request_id=request_id(request.headers.get(REQUEST_ID)))
            await self._serve_public(request, receive, _with_record(send, request.state.record, None))
            return
        host = request.client.host if request.client else ""
        record = self._observer.begin("rest", "", request.headers, caller=request.state.certificate or host)
        request.state.record = record
        try:
            await self._admit(request, receive, _with_record(send, record, self._observer.meter))
        finally:
            self._observer.end(record)

    async def _serve_public(self, request: Request, receive: Receive, send: Send) -> None:
        try:
            self._check_host(request)
        except AttentionServiceError as error:
            await _refuse(error, request, receive, send)
            return
        await self._app(request.scope, receive, send)

    async def _admit(self, request: Request, receive: Receive, send: Send) -> None:
        """Serve a request if its host, certificate, token, origin and rate are allowed; else refuse it."""
        try:
            self._check_host(request)
            if self._mutual and not request.state.certificate:
                raise Unauthenticated("show a certificate that an authority of this server's has signed")
            caller = self._callers.authenticate(request.headers.get("authorization"))
            _check_origin(request)
            lease = self._account.hold(REQUEST_BYTES, caller.name or request.state.record.caller)
            leave = _begin_request(caller, lease)
        except AttentionServiceError as error:
            await _refuse(error, request, receive, send)
            return
        request.state.caller = caller
        request.state.record.caller = lease.holder
        request.state.lease = lease
        current_lease.set(lease)
        try:
            await self._app(request.scope, receive, send)
        finally:
            if leave:
                leave()
            lease.settle(request.state.record.answer_bytes)
            request.state.connection.release_when_sent(lease)

    def _check_host(self, request: Request) -> None:
        hosts = [value.decode("latin-1") for name, value in request.scope["headers"] if name == b"host"]
        self._hosts.check(hosts, request.scope["http_version"])


def _begin_request(caller: Caller, lease: Lease) -> Callable[[], None] | None:
    """Count a request of a caller; one that is refused holds nothing. Raises as `Caller.begin_request`."""
    try:
        return caller.begin_request()
    except AttentionServiceError:
        lease.release()
        raise


async def _refuse(error: AttentionServiceError, request: Request, receive: Receive, send: Send) -> None:
    """Send an error before the body is read; the connection is closed, since the body may follow."""
    response = error_response(error, request)
    if isinstance(error, Unauthenticated) and request.headers.get("sec-fetch-dest") == "empty":
        # A script's request: without a Basic challenge the browser opens no dialog, and the page can ask for a token.
        response.headers["www-authenticate"] = 'Bearer realm="attention"'
    response.headers["connection"] = "close"
    await response(request.scope, receive, send)


def _with_record(send: Send, record: RequestRecord, meter: LoadMeter | None) -> Send:
    """Wrap `send`: record the response's status and size, and add to its headers.

    Added are the request's id and timing, and a load report where there is a meter.
    """

    async def recording(message: Message) -> None:
        if message["type"] == "http.response.start":
            record.mark_written()
            code = status_name(message["status"])
            if record.code == OK != code:  # the router's own refusals
                record.set_error(code, code.lower())
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID] = record.request_id
            timing = record.server_timing()
            if timing:
                headers[SERVER_TIMING] = timing
            if meter is not None:
                headers[orca.HEADER] = orca.encode_text(meter.load())
        else:
            record.answer_bytes += len(message.get("body", b""))
        await send(message)

    return recording


def _check_origin(request: Request) -> None:
    """Refuse an unsafe method from a page of another site: the browser may add credentials it remembers.

    Raises:
        PermissionDenied: the request's origin is another site.
    """
    if request.method in SAFE_METHODS:
        return
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None:
        foreign = site not in ("same-origin", "none")
    else:
        foreign = origin is not None and _host_of(origin) != request.headers.get("host", "")
    if foreign:
        raise PermissionDenied("a page of another site may not ask here")


def _host_of(origin: str) -> str | None:
    """Return the host and port of an origin; None if it has none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None
