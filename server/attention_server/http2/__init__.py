"""gRPC over HTTP/2, the server's side. This package stands alone: it imports nothing else of the service.

Three objects: a `Connection` (an asyncio protocol), its `Call`s (one HTTP/2 stream each), and the `SessionEvents` by
which an HTTP/2 `Session` reports to its connection. A `Server` holds the state that all connections share.

    server = Server(on_call, Limits(...), Timeouts(), inflate)
    listener = await loop.create_server(server.connect, sock=sock)

`on_call` receives a `Call` when its headers have arrived, and calls `Call.start` with a coroutine that reads messages,
writes messages and finishes with a status.

HTTP/2 frames, HPACK and flow control are nghttp2's, the system's shared library (Debian: libnghttp2-14), called by its
C interface; version 1.41 or later. `check_library` raises one sentence that names the package to install. The
remaining modules load the library at import, so call `check_library` before.

Of gRPC's protocol (doc/PROTOCOL-HTTP2.md of gRPC) it supports: unary and streaming calls, deadlines (`grpc-timeout`),
cancellation, request messages compressed by gzip or deflate, trailers-only responses, status details, flow control by
read messages, GOAWAY in two steps at a shutdown, PING of quiet peers. It refuses: any content type but
`application/grpc` and `application/grpc+proto` (HTTP 415), any method but POST (405), unknown encodings
(UNIMPLEMENTED), headers and trailers over 16 KiB or 128 fields, messages over the limit (RESOURCE_EXHAUSTED). It does
not support: compressed responses, server push, HTTP/1.1 upgrade, `grpc-web`.

Of HTTP/2 (RFC 9113) it ignores, where the RFC would have an error: frames on a stream that the peer has reset, headers
on a stream below the last one, and spaces around a header's value. Priorities have no effect. Trailers are checked and
dropped, as gRPC's clients send none. A peer that resets over 1,000 streams at once, or 100 a second, is sent GOAWAY.
"""
