"""An engine in this process: the server's core without its listeners. The only part that needs the server's extra."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attention_client import (
    AttendResult,
    AttentionError,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    NotFound,
    TooLarge,
    Unavailable,
)
from attention_client import Sequence as Asked
from attention_client.request import attend_request
from attention_client.result import read
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_server import errors as server_errors
from attention_server import logs
from attention_server.callers import ALL_RIGHTS
from attention_server.domain import Call, Limits
from attention_server.engine import Engine
from attention_server.loading import RepositoryError
from attention_server.memories import MemoryStore
from attention_server.repository import Policy, Repository
from attention_server.scheduler import Scheduler
from attention_server.service import Service
from attention_server.settings import MIB, Settings
from attention_server.translate import proto

from attention_batch.errors import Refused
from attention_batch.scorer import Question

_CLASSES: dict[type[server_errors.AttentionServiceError], type[AttentionError]] = {
    server_errors.InvalidRequest: InvalidRequest,
    server_errors.NotFound: NotFound,
    server_errors.TooLarge: TooLarge,
    server_errors.Unavailable: Unavailable,
    server_errors.DeadlineExceeded: DeadlineExceeded,
}


class LocalEngine:
    """Computes here.

    Args:
        models: the repository's folder; None for the embedded one.
        lanes: messages computed at once; 0 is one for each usable core.

    Raises:
        Refused: the repository cannot be loaded.
    """

    def __init__(self, models: Path | None, lanes: int = 0) -> None:
        settings = Settings.model_validate({} if models is None else {"models": models})
        logs.configure("warning", "text")
        memories = MemoryStore(settings.memory_mib * MIB)
        repository = Repository(settings.models, Engine(settings.device, threads=1), memories, Policy())
        try:
            repository.load()
        except RepositoryError as error:
            raise Refused(str(error)) from error
        self.lanes = lanes or settings.compute_slots
        self._limits = Limits(
            sequences=settings.max_sequences,
            scores_bytes=settings.max_scores_mib * MIB,
            answer_bytes=settings.max_answer_mib * MIB,
            memory_ttl=settings.memory_ttl,
        )
        scheduler = Scheduler(self.lanes, settings.max_queued)
        self._service = Service(repository, scheduler, memories, self._limits)

    def model(self, name: str, version: int) -> pb.Model:
        """Describe a model version. Raises AttentionError."""
        with _translated():
            return self._service.model(name, version)

    def attend(self, question: Question, sequences: list[Asked]) -> list[AttendResult]:
        """Answer one message, by the way that one over the wire takes. Raises AttentionError."""
        wire = question.outputs.wire
        request = attend_request(question.model, sequences, wire, question.version, token_offsets=False)
        with _translated():
            response = self._service.attend(
                proto.to_request(request, self._limits), Call(uuid.uuid4().hex, rights=ALL_RIGHTS)
            )
        return read(request, proto.from_response(response))


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except server_errors.AttentionServiceError as error:
        raise _CLASSES.get(type(error), InternalError)(error.message, field=error.field or None) from error
