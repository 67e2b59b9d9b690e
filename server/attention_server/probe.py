"""Ask a server's grpc.health.v1 once: `python -m attention_server.probe [HOST:PORT]` exits 0 if it serves, else 1.

For a container's health check: it loads gRPC and nothing else of the service. With ATTENTION_TLS_CERT it asks this
machine's /readyz, which wants no certificate of a caller, and does not verify the server's certificate.
"""

import os
import ssl
import sys
from http import HTTPStatus
from http.client import HTTPException, HTTPSConnection

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SECONDS = 3.0


def status(target: str) -> str:
    """Return the health of the server at `target`, as `HOST:PORT`, or the reason for which it is unknown."""
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        try:
            answer = health.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)  # type: ignore[attr-defined]
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def status_by_https(target: str) -> str:
    """Return the answer of the /readyz of the server at `target`, over TLS."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = HTTPSConnection(target, timeout=SECONDS, context=context)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
    except (OSError, HTTPException) as error:
        return f"UNAVAILABLE: {error}"
    finally:
        connection.close()
    return "SERVING" if answer.status == HTTPStatus.OK else f"{answer.status} {answer.reason}"


def main() -> None:
    """Probe the address given, or this machine's ATTENTION_GRPC_PORT, or with TLS its ATTENTION_REST_PORT."""
    if len(sys.argv) == 1 and os.environ.get("ATTENTION_TLS_CERT"):
        target = f"127.0.0.1:{os.environ.get('ATTENTION_REST_PORT', '8080')}"
        answer = status_by_https(target)
    else:
        target = sys.argv[1] if len(sys.argv) > 1 else f"127.0.0.1:{os.environ.get('ATTENTION_GRPC_PORT', '50051')}"
        answer = status(target)
    if answer != "SERVING":
        sys.exit(f"{target}: {answer}")


if __name__ == "__main__":
    main()
