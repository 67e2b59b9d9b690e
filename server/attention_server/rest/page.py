"""The page at `/`: static files that ask the public API for all they show."""

import gzip
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import PurePath

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

# Nothing but this origin's files and answers. Files that the page makes are blobs, and an icon is data.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".txt": "text/plain"}
INDEX = "index.html"


def page_routes() -> list[Route]:
    """Return `/` and the files that it loads, whose names change with their content."""
    folder = files(__package__).joinpath("page")
    contents = {each.name: each.read_bytes() for each in folder.iterdir()}
    loaded = [Route(f"/page/{name}", _file(name, content)) for name, content in contents.items() if name != INDEX]
    return [Route("/", _file(INDEX, contents[INDEX])), *loaded]


def _file(name: str, content: bytes) -> Callable[[Request], Awaitable[Response]]:
    small = gzip.compress(content, mtime=0)
    headers = {
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache" if name == INDEX else "public, max-age=31536000, immutable",
        "vary": "accept-encoding",
    }

    async def answer(request: Request) -> Response:
        media_type = TYPES[PurePath(name).suffix]
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(small, headers=headers | {"content-encoding": "gzip"}, media_type=media_type)
        return Response(content, headers=headers, media_type=media_type)

    return answer
