"""Steps of the service for `benchmarks.steps`: in process, and over gRPC by the shipped client."""

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from attention_client import AttentionClient
from attention_client.errors import AttentionError

from benchmarks.serving import plan, servers

NAME = "decoder"  # of the model
SECONDS_TO_START = 120
OPTIONS = ("--slots", 1, "--repository-mode", "none", "--memory-mib", 8192, "--max-scores-mib", 4096)


def service(folder: Path) -> Any:
    """Return the server's core with the model, in this process, on one slot."""
    from attention_proto.allocator import keep_freed  # noqa: PLC0415
    from attention_server.service.build import make_core  # noqa: PLC0415
    from attention_server.settings import Settings  # noqa: PLC0415
    from attention_server.telemetry import logs  # noqa: PLC0415

    keep_freed()  # as the server does
    logs.configure("warning", "text")  # stdout is for the figures
    chosen = {"models": folder, "slots": 1, "repository_mode": "none", "memory_mib": 8192, "max_scores_mib": 4096}
    core = make_core(Settings.model_validate(chosen))
    core.repository.load()
    return core.service


def conversation(service: Any, prompt: np.ndarray, count: int) -> Callable[[int], np.ndarray | None]:
    """Return the step of some conversations in one request, each kept behind a memory of its own."""
    owner = uuid.uuid4().hex  # of no other contender's memories, since equal ones of one owner are one
    memories = [kept(service, np.roll(prompt, place), owner) for place in range(count)]
    output = "logits" if count == 1 else "predictions"

    def step(token: int) -> np.ndarray | None:
        results = extended(service, memories, token, output, owner)
        for place, (result, before) in enumerate(zip(results, list(memories), strict=True)):
            service.delete_memory(NAME, before, call(owner))
            memories[place] = result.memory.id
        return results[0].outputs["logits"][0] if count == 1 else None

    return step


def generation(service: Any, prompt: np.ndarray) -> Callable[[int], int]:
    """Return the step that `ServedConversation` makes over gRPC."""
    owner = uuid.uuid4().hex
    memory = kept(service, prompt, owner)

    def step(token: int) -> int:
        nonlocal memory
        (result,) = extended(service, [memory], token, "predictions", owner)
        memory = result.memory.id
        return int(result.predictions[0].id)

    return step


def call(owner: str) -> Any:
    from attention_server.auth.callers import ALL_RIGHTS  # noqa: PLC0415
    from attention_server.domain.call import CallContext  # noqa: PLC0415

    return CallContext(uuid.uuid4().hex, rights=ALL_RIGHTS, owner=owner)


def kept(service: Any, prompt: np.ndarray, owner: str) -> str:
    """Return the id of the memory of a prefix."""
    from attention_server.domain.messages import MemoryRequest  # noqa: PLC0415

    made: str = service.submit_memory(MemoryRequest(NAME, memory_token_ids=prompt), call(owner)).result().id
    return made


def extended(service: Any, memories: list[str], token: int, output: str, owner: str) -> Any:
    """Return the results of one token behind each of some memories, kept."""
    from attention_server.domain.messages import OutputSpec, Request, Sequence  # noqa: PLC0415

    inputs = tuple([Sequence(token_ids=np.array([token]), memory=each, extend=True) for each in memories])
    request = Request(NAME, inputs=inputs, outputs=(OutputSpec(output),))
    return service.submit(request, call(owner)).result().results


@contextmanager
def served(folder: Path) -> Iterator[AttentionClient]:
    """Start the service on a core of its own; yield a client with one channel, once a model is ready.

    Args:
        folder: of the models; receives the server's log.

    Raises:
        ServerFailed: the server has ended, or has no model after `SECONDS_TO_START`.
    """
    server = servers.Server("server", servers.attention(folder, *OPTIONS), plan.SERVER_CORE, folder)
    try:
        with AttentionClient(server.address, timeout=120) as client:
            await_models(server, client)
            yield client
    finally:
        server.stop()


def await_models(server: servers.Server, client: AttentionClient) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while True:
        server.check()
        try:
            if client.models():
                return
        except AttentionError:
            if time.monotonic() > end:
                raise
        if time.monotonic() > end:
            raise servers.ServerFailed("it has no model")
        time.sleep(0.1)


class ServedConversation:
    """Steps behind a kept prefix as `generate` of the client makes them: each memory that a step left stays.

    Args:
        client: of the server.
        prompt: ids of the prefix.
    """

    def __init__(self, client: AttentionClient, prompt: np.ndarray) -> None:
        self._client = client
        self._memory = client.create_memory(NAME, memory_token_ids=prompt)

    def step(self, token: int) -> int:
        """Go on by one token; return the id of the next."""
        result = self._client.attend(NAME, token_ids=[token], memory=self._memory, outputs=["predictions"], extend=True)
        assert result.memory is not None
        self._memory = result.memory
        return result.predictions[0].id
