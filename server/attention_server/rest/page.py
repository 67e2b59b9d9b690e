"""The page at `/`: static files, with a script that calls the public API."""

import gzip
import re
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import PurePath

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

# This origin alone. The page saves files as blobs, and its icon is a data URL.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".txt": "text/plain"}
INDEX = "index.html"
NAMED_BY_CONTENT = re.compile(r".+-[0-9a-f]{12}\.\w+")


CONTENTS = {each.name: each.read_bytes() for each in files(__package__).joinpath("page").iterdir()}
# Public: the files say nothing about models. The page calls the API with its reader's token.
PATHS = frozenset({"/", *(f"/page/{name}" for name in CONTENTS if name != INDEX)})


def page_routes() -> list[Route]:
    """Return the routes of `/`, of the files that it loads, whose names change with their content, and of licences."""
    return [Route(path, _file(PurePath(path).name or INDEX)) for path in sorted(PATHS)]


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    content = CONTENTS[name]
    small = gzip.compress(content, mtime=0)
    headers = {
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "public, max-age=31536000, immutable" if NAMED_BY_CONTENT.fullmatch(name) else "no-cache",
        "vary": "accept-encoding",
    }

    async def answer(request: Request) -> Response:
        media_type = TYPES[PurePath(name).suffix]
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(small, headers=headers | {"content-encoding": "gzip"}, media_type=media_type)
        return Response(content, headers=headers, media_type=media_type)

    return answer
