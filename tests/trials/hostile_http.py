"""Requests of HTTP that are nearly right, as bytes: heads, chunks, lengths, encodings and paths that lie."""

import gzip
import random
import zlib

BODY = b'{"query": [[1.0, 0.5], [0.25, -1.0]]}'
PATHS = (
    "/v1/models/dot:attend",
    "/v1/models/dot:attend",
    "/v1/models/dot/versions/1:attend",
    "/v1/models/dot/versions/99999999999999999999:attend",
    "/v1/models/dot/versions/-1:attend",
    "/v1/models/dot/versions/%D9%A1:attend",
    "/v2/models/dot/infer",
    "/v2/models/dot/versions/x/infer",
    "/v2/models/%2e%2e%2f%2e%2e/infer",
    "/v1/models",
    "/v1/models/dot",
    "/v1/models/dot/memories",
    "/v1/models/dot/memories/x",
    "/v2/health/ready",
    "/v2/repository/index",
    "/docs/assets/../../../../etc/passwd",
    "/docs/assets/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "/docs/assets/..%5c..%5csecret",
    "/docs/assets/%00",
    "/docs/assets//etc/passwd",
    "/openapi.json",
    "/docs",
    "/healthz",
    "/",
    "//",
    "/v1/models/" + "a" * 3000 + ":attend",
    "/v1/models/%ff%fe:attend",
    "/v1/models/%zz:attend",
    "/v1/models/a%0d%0ax: y:attend",
    "http://elsewhere/v1/models/dot:attend",
    "*",
    "?",
    "/v1/models/dot:attend?" + "a=b&" * 500,
    "/v1/models/dot:attend#x",
    "\xe9",
    "no-slash",
    "",
)
SMALL_BOMB = gzip.compress(bytes(3_000_000))
BOMB = zlib.compress(b" " * 30_000_000)
METHODS = (
    "POST",
    "POST",
    "POST",
    "GET",
    "PUT",
    "DELETE",
    "HEAD",
    "OPTIONS",
    "PATCH",
    "TRACE",
    "CONNECT",
    "PRI",
    "get",
    "X" * 300,
    "",
    "PO ST",
)
VERSIONS = (
    "HTTP/1.1",
    "HTTP/1.1",
    "HTTP/1.1",
    "HTTP/1.0",
    "HTTP/2.0",
    "HTTP/0.9",
    "HTTP/9.9",
    "HTTP",
    "",
    "http/1.1",
    "HTTP/1.1 x",
)
HEADERS = (
    "content-type: application/json",
    "content-type: application/x-protobuf",
    "content-type: application/x-protobuf; charset=\xff",
    "content-type: " + "x" * 4000,
    "accept: application/x-protobuf",
    "accept: \x01",
    "accept-encoding: gzip",
    "accept-encoding: gzip;q=nan",
    "content-encoding: identity",
    "content-encoding: br",
    "content-encoding: gzip, gzip",
    "content-encoding: \xe9",
    "x-request-timeout: 0.000001",
    "x-request-timeout: nan",
    "x-request-timeout: inf",
    "x-request-timeout: -1",
    "x-request-timeout: 1e400",
    "x-request-timeout: 0x1",
    "x-request-timeout: 1_0",
    "x-request-timeout: " + "9" * 4000,
    "x-request-id: " + "a" * 4000,
    "x-request-id: a\tb",
    "x-request-id: \xe9",
    "authorization: Bearer " + "x" * 2000,
    "authorization: Basic ====",
    "authorization:",
    "expect: 100-continue",
    "expect: 200-ok",
    "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\nsec-websocket-version: 13",
    "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__",
    "connection: close",
    "connection: keep-alive, close, x",
    "inference-header-content-length: 5",
    "inference-header-content-length: -5",
    "inference-header-content-length: 99999999999999999999999",
    "inference-header-content-length: \xb2",
    "traceparent: 00-0-0-0",
    "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "origin: http://elsewhere",
    "origin: http://[",
    "origin: null",
    "sec-fetch-site: cross-site",
    "host: elsewhere",
    "host:",
    "range: bytes=0-0",
    "if-none-match: *",
    "if-modified-since: x",
    "cookie: " + "a=b; " * 200,
    "no colon",
    " folded",
    "a b: c",
    "a: b\x00c",
    "a: b\rc",
    ": empty",
    "x" * 3000 + ": y",
)
LENGTHS = (
    "{}",
    "{}",
    "{}",
    "0",
    "1",
    "-1",
    "+5",
    "99999999",
    "99999999999999999999999",
    "0x10",
    "",
    "5, 5",
    "\xb2",
    "1e3",
    " 7 ",
)
CHUNKED = (
    "chunked",
    "chunked",
    "Chunked",
    "gzip, chunked",
    "chunked, chunked",
    "identity",
    "x",
    " chunked",
    "chunked\r\ncontent-length: 5",
)


def request(rng: random.Random, body: bytes = BODY) -> bytes:
    """Return a request that may be wrong in any of its parts."""
    sure = rng.randrange(3) == 0
    method = "POST" if sure else rng.choice(METHODS)
    path = "/v1/models/dot:attend" if sure else rng.choice(PATHS)
    version = "HTTP/1.1" if sure else rng.choice(VERSIONS)
    lines = [f"{method} {path} {version}"]
    if rng.randrange(8):
        lines.append("host: localhost")
    lines += rng.choices(HEADERS, k=rng.randrange(4))
    if rng.randrange(6) == 0:
        body, encoding = compressed(body, rng)
        lines.append(f"content-encoding: {encoding}")
    if rng.randrange(3) == 0:
        lines.append(f"transfer-encoding: {rng.choice(CHUNKED)}")
        body = chunks(body, rng)
    if rng.randrange(10):
        lines.append("content-length: " + rng.choice(LENGTHS).format(len(body)))
    rng.shuffle(lines[1:])
    end = "\r\n" if rng.randrange(12) else rng.choice(("\n", "\r", "\r\n\r\n", "\x00\r\n"))
    return (end.join(lines) + end + end).encode("latin-1") + body


def chunks(body: bytes, rng: random.Random) -> bytes:
    """Return a body in chunks, of which one may lie."""
    sent = b""
    size = rng.choice((1, 3, 100))
    wrong = rng.randrange(len(body) // size + 2)
    for i, start in enumerate(range(0, len(body), size)):
        chunk = body[start : start + size]
        length = f"{len(chunk):x}"
        if i == wrong:
            length = rng.choice(
                ("-1", "ffffffffffffffffff", "g", "", "0x1", " 1", "1;" + "x" * 5000, "0", "7fffffff", f"{len(chunk)} ")
            )
        sent += length.encode() + rng.choice((b"\r\n", b"\r\n", b"\r\n", b"\n")) + chunk + b"\r\n"
    return sent + rng.choice(
        (b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\na: b\r\n\r\n", b"0\r\n", b"", b"0\r\ncontent-length: 5\r\n\r\n")
    )


def compressed(body: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Return a body that is compressed, or not, and the header that describes it."""
    packed, encoding = rng.choice(
        (
            (gzip.compress(body), "gzip"),
            (zlib.compress(body), "deflate"),
            (zlib.compress(body)[2:-4], "deflate"),
            (gzip.compress(body), "deflate"),
            (body, "gzip"),
            (gzip.compress(body)[:-3], "gzip"),
            (gzip.compress(body) * 2, "gzip"),
            (gzip.compress(gzip.compress(body)), "gzip"),
            (SMALL_BOMB, "gzip"),
            (BOMB, "deflate"),
            (b"", "gzip"),
            (body, "zstd"),
            (gzip.compress(body), "gzip, deflate"),
        )
    )
    return packed, encoding


def in_pieces(sent: bytes, rng: random.Random) -> list[bytes]:
    """Return a request as it is sent: whole, in two, in single bytes, twice, in part; or something else."""
    at = rng.randrange(len(sent) + 1)
    return rng.choice(
        (
            [sent],
            [sent[:at], sent[at:]],
            [sent[i : i + 1] for i in range(min(len(sent), 600))],
            [sent + sent],
            [sent[:at]],
            [rng.randbytes(rng.randrange(1, 300))],
        )
    )
