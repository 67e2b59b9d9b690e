"""An engine that calls a service."""

from attention_client import AttendResult, AttentionClient, Sequence
from attention_proto.attention.v1 import attention_pb2 as pb

from attention_batch.spec import ScoringSpec

CONCURRENCY = 8


class ClientEngine:
    """An engine behind a connected client, which may balance its calls over several replicas."""

    concurrency = CONCURRENCY
    processes = 0

    def __init__(self, client: AttentionClient) -> None:
        self._client = client

    def model(self, name: str, version: int) -> pb.Model:
        """Return a model version's description. Raises AttentionError."""
        return self._client.model(name, version)

    def attend(self, spec: ScoringSpec, sequences: list[Sequence]) -> list[AttendResult]:
        """Return one answer a sequence, from one call. Raises AttentionError."""
        return self._client.attend_batch(spec.model, sequences, version=spec.version, outputs=spec.outputs.wire)
