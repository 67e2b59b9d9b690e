"""An engine that is a service: every message is one call of the client."""

from attention_client import AttendResult, AttentionClient
from attention_client import Sequence as Asked
from attention_proto.attention.v1 import attention_pb2 as pb

from attention_batch.scorer import Question

LANES = 8


class ClientEngine:
    """Asks a service, or several replicas of one, through a client that is connected to it."""

    lanes = LANES
    workers = 0

    def __init__(self, client: AttentionClient) -> None:
        self._client = client

    def model(self, name: str, version: int) -> pb.Model:
        """Describe a model version. Raises AttentionError."""
        return self._client.model(name, version)

    def attend(self, question: Question, sequences: list[Asked]) -> list[AttendResult]:
        """Answer one message. Raises AttentionError."""
        return self._client.attend_batch(
            question.model, sequences, version=question.version, outputs=question.outputs.wire
        )
