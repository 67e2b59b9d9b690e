"""What every HTTP request passes before its route: whose it is, and whether there is room for it."""

from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from attention_server.callers import OPEN, Callers
from attention_server.errors import AttentionServiceError, PermissionDenied, Unauthenticated
from attention_server.rest import page
from attention_server.rest.exchange import REQUEST_ID, error_response, request_id

READING = ("GET", "HEAD", "OPTIONS")
# All that is answered without asking who calls: these paths, to the letter.
UNGUARDED = OPEN | page.PATHS


class Gate:
    """Lets callers through who are known; those who ask for health, or for the page's own files, need not be.

    Args:
        app: what is behind the gate.
        callers: who may call.
        mutual: whether a caller has to show a certificate.
    """

    def __init__(self, app: ASGIApp, callers: Callers, mutual: bool) -> None:
        self._app = app
        self._callers = callers
        self._mutual = mutual

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNGUARDED:
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        try:
            if self._mutual and not request.state.certificate:
                raise Unauthenticated("show a certificate that an authority of this server's has signed")
            caller = self._callers.identify(request.headers.get("authorization"))
            _refuse_other_sites(request)
            leave = caller.enter()
        except AttentionServiceError as error:
            response = error_response(error, request)
            response.headers[REQUEST_ID] = request_id(request)
            if isinstance(error, Unauthenticated) and request.headers.get("sec-fetch-dest") == "empty":
                # What a script asked for: its page asks the reader, and the browser's own dialog would come before it.
                response.headers["www-authenticate"] = 'Bearer realm="attention"'
            response.headers["connection"] = "close"  # a body that may follow is not read
            await response(scope, receive, send)
            return
        request.state.caller = caller
        try:
            await self._app(scope, receive, send)
        finally:
            leave()


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
