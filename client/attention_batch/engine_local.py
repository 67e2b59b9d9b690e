"""An engine in this process: the server's core without its listeners. The only part that needs the server's extra."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attention_client import AttendResult
from attention_client import Sequence as Asked
from attention_client.errors import CLASSES, AttentionError
from attention_client.request import attend_request
from attention_client.result import read
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_server import logs
from attention_server.callers import ALL_RIGHTS
from attention_server.core import make_core
from attention_server.domain import Call
from attention_server.engine import DeviceError
from attention_server.errors import AttentionServiceError
from attention_server.loading import RepositoryError
from attention_server.settings import Settings
from attention_server.translate import proto
from attention_server.translate.errors import code_of

from attention_batch.errors import Refused
from attention_batch.scorer import Question


class LocalEngine:
    """Computes here.

    Args:
        models: the repository's folder; None for the embedded one.
        lanes: messages computed at once; 0 is one for each usable core.

    Raises:
        Refused: the repository cannot be loaded.
    """

    def __init__(self, models: Path | None, lanes: int = 0) -> None:
        chosen = {"models": models, "slots": lanes or None}
        given = {name: value for name, value in chosen.items() if value is not None}
        settings = Settings.model_validate({"repository_mode": "none", "load_model": (), **given})
        logs.configure("warning", "text")
        try:
            core = make_core(settings)
            core.repository.load()
        except (DeviceError, RepositoryError) as error:
            raise Refused(str(error)) from error
        self.lanes = settings.compute_slots
        self._service = core.service

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
                proto.to_request(request, self._service.limits), Call(uuid.uuid4().hex, rights=ALL_RIGHTS)
            )
        return read(request, proto.from_response(response))


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except AttentionServiceError as error:
        raise CLASSES.get(code_of(error).grpc, AttentionError)(error.message, field=error.field or None) from error
