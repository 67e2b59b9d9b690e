"""What every HTTP request passes before its route: who watches it, whose it is, and whether there is room for it."""

from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from attention_server.auth.callers import OPEN, Callers
from attention_server.codecs.errors import name_of
from attention_server.domain.request_record import OK, REQUEST_ID, SERVER_TIMING, RequestRecord, request_id
from attention_server.errors import AttentionServiceError, PermissionDenied, Unauthenticated
from attention_server.rest import page
from attention_server.rest.exchange import error_response
from attention_server.telemetry.observer import Observer

READING = ("GET", "HEAD", "OPTIONS")
# All that is answered without asking who calls: these paths, to the letter.
UNGUARDED = OPEN | page.PATHS


class ObservingMiddleware:
    """Lets callers through who are known; those who ask for health, or for the page's own files, need not be.

    Args:
        app: what is behind the gate.
        callers: who may call.
        mutual: whether a caller has to show a certificate.
        observer: watches.
    """

    def __init__(self, app: ASGIApp, callers: Callers, mutual: bool, observer: Observer) -> None:
        self._app = app
        self._callers = callers
        self._mutual = mutual
        self._observer = observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        if scope["path"] in UNGUARDED:  # who asks for health, or opens the page, is told their id and not counted
            request.state.record = RequestRecord(request_id=request_id(request.headers.get(REQUEST_ID)))
            await self._app(scope, receive, _told(send, request.state.record))
            return
        host = request.client.host if request.client else ""
        record = self._observer.begin("rest", "", request.headers, caller=request.state.certificate or host)
        request.state.record = record
        try:
            await self._admit(request, receive, _told(send, record))
        finally:
            self._observer.end(record)

    async def _admit(self, request: Request, receive: Receive, send: Send) -> None:
        try:
            if self._mutual and not request.state.certificate:
                raise Unauthenticated("show a certificate that an authority of this server's has signed")
            caller = self._callers.identify(request.headers.get("authorization"))
            _refuse_other_sites(request)
            leave = caller.enter()
        except AttentionServiceError as error:
            response = error_response(error, request)
            if isinstance(error, Unauthenticated) and request.headers.get("sec-fetch-dest") == "empty":
                # What a script asked for: its page asks the reader, and the browser's own dialog would come before it.
                response.headers["www-authenticate"] = 'Bearer realm="attention"'
            response.headers["connection"] = "close"  # a body that may follow is not read
            await response(request.scope, receive, send)
            return
        request.state.caller = caller
        request.state.record.caller = caller.name or request.state.record.caller
        try:
            await self._app(request.scope, receive, send)
        finally:
            if leave:
                leave()


def _told(send: Send, record: RequestRecord) -> Send:
    """Return what sends an answer, and tells its caller the request's id and where the time went."""

    async def tell(message: Message) -> None:
        if message["type"] == "http.response.start":
            record.mark_written()
            code = name_of(message["status"])
            if record.code == OK != code:  # the router's own refusals
                record.set_error(code, code.lower())
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID] = record.request_id
            timing = record.server_timing()
            if timing:
                headers[SERVER_TIMING] = timing
        else:
            record.answer_bytes += len(message.get("body", b""))
        await send(message)

    return tell


def _refuse_other_sites(request: Request) -> None:
    """Refuse what a page of another site has a browser send, with credentials that the browser remembers.

    Raises:
        PermissionDenied: it would change or compute something.
    """
    if request.method in READING:
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
    """Return the host and port of an origin; None where it is none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None
