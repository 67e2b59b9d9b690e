"""The connection of a command to the service, and its failures in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, NoReturn

import grpc
import typer

from attention_client.api.client import AttentionClient
from attention_client.errors import AttentionError, DeadlineExceeded, Unavailable

Target = Annotated[str, typer.Option(envvar="ATTENTION_TARGET", help="Where the server listens, HOST:PORT.")]
Timeout = Annotated[float, typer.Option(min=0, help="Seconds to wait for an answer.")]


@dataclass
class CallerCredentials:
    """The caller's credentials, which every command sends.

    Attributes:
        token: the caller's; None sends none.
        credentials: of TLS; None speaks without TLS.
    """

    token: str | None = None
    credentials: grpc.ChannelCredentials | None = None


caller = CallerCredentials()


@contextmanager
def connect(target: str, timeout: float) -> Iterator[AttentionClient]:
    """Connect a client; print a failed call as one line on stderr and exit with status 1."""
    try:
        with AttentionClient(target, timeout=timeout, token=caller.token, credentials=caller.credentials) as client:
            yield client
    except AttentionError as error:
        fail(_describe_failure(error, target, timeout))


def _describe_failure(error: AttentionError, target: str, timeout: float) -> str:
    if isinstance(error, DeadlineExceeded):
        return f"no answer from {target} within {timeout:g} s (--timeout)"
    if isinstance(error, Unavailable) and error.retry_after is None:
        cause = error.message.rpartition(": ")[-1].rstrip("]")  # the last of the reasons that gRPC nests
        return f"cannot reach {target}: {cause}. Start a server there with `attention-server`, or name one by --target"
    return str(error)


def fail(message: str) -> NoReturn:
    """Print an error as one line on stderr, and exit with status 1."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)
