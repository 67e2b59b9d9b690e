"""An engine in this process: the server's core, without listeners and without a wire."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import grpc
import structlog
from attention_client import Alignment, AttendResult, Candidate, Link, Prediction, Sequence, TopK
from attention_client.errors import AttentionError, InvalidRequest, NotFound
from attention_client.result import OutputValue
from attention_client.wire.request import attend_request
from attention_client.wire.status import ERROR_CLASSES
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.masks import Mask
from attention_server.auth.callers import ALL_RIGHTS
from attention_server.codecs import proto
from attention_server.codecs.errors import code_of
from attention_server.domain import messages as domain
from attention_server.domain.call import CallContext
from attention_server.errors import AttentionServiceError
from attention_server.inference.engine.protocol import DeviceError
from attention_server.repository.loader import RepositoryError
from attention_server.service.build import make_core
from attention_server.settings import Settings
from attention_server.telemetry import logs

from attention_batch.engines.prefixes import Prefixes
from attention_batch.errors import Refused
from attention_batch.readers.rows import Row
from attention_batch.spec import Outputs, ScoringSpec

MEMORY_ATTEMPTS = 3  # to compute a batch while the contexts of its rows are evicted


class LocalEngine:
    """An engine that computes in this process.

    Args:
        models: the repository's folder; None for the embedded one.
        concurrency: batches computed at once; 0 for one on each usable core.

    Raises:
        Refused: the repository cannot be loaded.
    """

    def __init__(self, models: Path | None, concurrency: int = 0) -> None:
        chosen = {"models": models, "slots": concurrency or None}
        given = {name: value for name, value in chosen.items() if value is not None}
        settings = Settings.model_validate({"repository_mode": "none", "load_model": (), **given})
        if not structlog.is_configured():  # how its process logs is the program's choice
            logs.configure("warning", "text")
        try:
            core = make_core(settings)
            core.repository.load()
        except RepositoryError as error:
            raise Refused(error.log_reason) from error
        except DeviceError as error:
            raise Refused(str(error)) from error
        self.concurrency = settings.compute_slots
        self.processes = self.concurrency if core.engine.device == "cpu" else 0  # a GPU is shared by threads
        self._service = core.service
        self._prefixes: Prefixes[str] = Prefixes()
        self._outputs: tuple[Outputs | None, tuple[domain.OutputSpec, ...]] = (None, ())

    def model(self, name: str, version: int) -> pb.Model:
        """Return a model version's description. Raises AttentionError."""
        with _translated():
            return self._service.model(name, version)

    def attend(self, spec: ScoringSpec, rows: list[Row]) -> list[AttendResult]:
        """Return one answer a row. Raises AttentionError."""
        for attempt in range(MEMORY_ATTEMPTS):
            memories = self._prefixes.of(rows, partial(self._keep, spec))
            try:
                return self._attend(spec, rows, memories)
            except NotFound:  # the budget of memories had no room for one
                if attempt + 1 == MEMORY_ATTEMPTS or not any(memories):
                    raise
                self._prefixes.forget(rows)
        raise AssertionError  # the last attempt has returned, or raised

    def _attend(self, spec: ScoringSpec, rows: list[Row], memories: list[str | None]) -> list[AttendResult]:
        inputs = [
            _sequence(row.sequence, f"inputs[{i}]", memory)
            for i, (row, memory) in enumerate(zip(rows, memories, strict=True))
        ]
        with _translated():
            request = domain.Request(
                model=spec.model,
                version=spec.version,
                inputs=tuple(inputs),
                outputs=self._specs(spec.outputs),
                ablate=tuple([domain.Ablation(tuple(each.layers), tuple(each.heads)) for each in spec.ablate]),
            )
            response = self._service.submit(request, _call()).result()
        return [_result(response, result) for result in response.each()]

    def _keep(self, spec: ScoringSpec, text: str) -> str:
        """Keep a context; return its id."""
        request = domain.MemoryRequest(model=spec.model, version=spec.version, memory_text=text)
        with _translated():
            return self._service.submit_memory(request, _call()).result().id

    def _specs(self, outputs: Outputs) -> tuple[domain.OutputSpec, ...]:
        """Return the outputs as the core's specs, parsed from the message of a request as a server does."""
        parsed, specs = self._outputs
        if parsed is not outputs:
            message = attend_request("", [], outputs.wire, 0, token_offsets=False)
            specs = proto.decode_request(message, self._service.limits).outputs
            self._outputs = outputs, specs
        return specs


def _call() -> CallContext:
    return CallContext(uuid.uuid4().hex, rights=ALL_RIGHTS)


def _sequence(row: Sequence, path: str, memory: str | None) -> domain.Sequence:
    """Return a row's sequence; rows have vectors or texts, and no mask besides the causal one."""
    return domain.Sequence(
        path=path,
        query=row.query,  # type: ignore[arg-type] # readers give arrays
        key=row.key,  # type: ignore[arg-type]
        value=row.value,  # type: ignore[arg-type]
        text=row.text,
        text_pair=row.text_pair,
        memory_text=row.memory_text,
        token_ids=row.token_ids,  # type: ignore[arg-type]
        memory_token_ids=row.memory_token_ids,  # type: ignore[arg-type]
        truncate=row.truncate,
        memory=memory or "",
        mask=domain.NO_MASK if row.causal == "none" else Mask(causal=row.causal),
    )


def _result(response: domain.Response, result: domain.Result) -> AttendResult:
    return AttendResult(
        model=response.model,
        version=response.version,
        outputs={name: _output(value) for name, value in result.outputs.items()},
        tokens=tuple(result.tokens.shown) if result.tokens else (),
        memory_tokens=tuple(result.memory_tokens.shown) if result.memory_tokens else (),
        truncated_tokens=result.tokens.truncated if result.tokens else 0,
        memory_truncated_tokens=result.memory_tokens.truncated if result.memory_tokens else 0,
        predictions=tuple([_prediction(each) for each in result.predictions or ()]),
    )


def _prediction(each: domain.Prediction) -> Prediction:
    top = tuple([Candidate(*candidate) for candidate in each.top])
    return Prediction(each.name, each.label, each.probability, each.row, each.id, top)


def _output(value: domain.OutputValue) -> OutputValue:
    if isinstance(value, domain.Alignment):
        return Alignment(tuple([Link(*link) for link in value.links]), value.pharaoh)
    return TopK(*value) if isinstance(value, domain.TopK) else value


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except AttentionServiceError as error:
        kind = ERROR_CLASSES.get(grpc.StatusCode[code_of(error).grpc.name], AttentionError)
        translated = kind(error.message, field=error.field or None)
        if isinstance(translated, InvalidRequest):
            translated.violations = ((error.field, error.message), *getattr(error, "others", ()))
        raise translated from error
