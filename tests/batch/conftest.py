"""A scoring job on the shared server."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from attention_batch.plan import ScoringJob
from attention_client import AttentionClient
from serving import Server


@pytest.fixture
def job(server: Server) -> Callable[..., ScoringJob]:
    """Return a function that makes a job from input, output, model and options."""

    def described(source: object, output: object, model: str, **options: Any) -> ScoringJob:
        return ScoringJob(input=str(source), output=str(output), model=model, target=server.grpc, **options)

    return described


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[AttentionClient]:
    """A client for the expected answers: one call for each sequence."""
    with AttentionClient(server.grpc) as connected:
        yield connected
