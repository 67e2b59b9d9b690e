"""gRPC over HTTP/2, on nghttp2."""
