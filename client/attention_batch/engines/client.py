"""An engine that calls a service."""

from dataclasses import replace

from attention_client import AttendResult, AttentionClient, Memory
from attention_proto.attention.v1 import attention_pb2 as pb

from attention_batch.engines.prefixes import Prefixes
from attention_batch.readers.rows import Row
from attention_batch.spec import ScoringSpec

CONCURRENCY = 8


class ClientEngine:
    """An engine behind a connected client, which may balance its calls over several replicas."""

    concurrency = CONCURRENCY
    processes = 0

    def __init__(self, client: AttentionClient) -> None:
        self._client = client
        self._prefixes: Prefixes[Memory] = Prefixes()

    def model(self, name: str, version: int) -> pb.Model:
        """Return a model version's description. Raises AttentionError."""
        return self._client.model(name, version)

    def attend(self, spec: ScoringSpec, rows: list[Row]) -> list[AttendResult]:
        """Return one answer a row, from one call; the client creates a memory again that the service has lost.

        Raises:
            AttentionError: no answer.
        """
        memories = self._prefixes.of(
            rows, lambda text: self._client.create_memory(spec.model, memory_text=text, version=spec.version)
        )
        sequences = [
            row.sequence if memory is None else replace(row.sequence, memory=memory)
            for row, memory in zip(rows, memories, strict=True)
        ]
        return self._client.attend_batch(
            spec.model, sequences, version=spec.version, outputs=spec.outputs.wire, ablate=spec.ablate
        )
