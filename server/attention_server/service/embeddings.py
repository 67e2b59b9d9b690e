"""Embeddings: the pooled hidden states of a model's last layer."""

from collections.abc import Sequence
from typing import cast

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Manifest
from attention_proto.stages import Pool

from attention_server.domain.messages import EmbeddingsRequest, OutputSpec, Request, Response, Result
from attention_server.errors import InvalidRequest
from attention_server.service.attend_job import AttendJob

HIDDEN = "hidden"


def attention_request(request: EmbeddingsRequest, manifest: Manifest) -> Request:
    """Return the attention request whose only output, pooled as the checkpoint says, is the embedding.

    Raises:
        InvalidRequest: the model has no pooling, or an embedding of another width.
    """
    if not manifest.text.pool:
        raise InvalidRequest(
            "this model has no embedding: its manifest names no pooling. Import the checkpoint with `--pool mean`, "
            "`first` or `last`, or ask for `hidden` with a pool by :attend",
            field="model",
        )
    if request.dimensions not in (0, manifest.hidden_dim):
        raise InvalidRequest(
            f"must be {manifest.hidden_dim}, the width of this model's embedding, or left out; embeddings are not cut",
            field="dimensions",
        )
    output = OutputSpec(HIDDEN, pool=cast("Pool", manifest.text.pool), path="model")
    return Request(request.model, request.version, request.inputs, (output,))


class EmbeddingsJob(AttendJob):
    """The job of such a request; the vectors of its response have length 1 where the checkpoint normalizes."""

    __slots__ = ()

    def response(self, results: Sequence[Result]) -> Response:
        """Return the response of all results, in the order of the inputs."""
        normalize = self.model.manifest.text.normalize
        return AttendJob.response(self, [_normalized(each) for each in results] if normalize else results)


def _normalized(result: Result) -> Result:
    """Divide each vector of a result by its length; zeros stay zeros."""
    vector = np.asarray(result.outputs[HIDDEN], np.float64)
    length = np.linalg.norm(vector, axis=-1, keepdims=True)
    unit = np.divide(vector, length, out=np.zeros_like(vector), where=length > 0)
    return result._replace(outputs={HIDDEN: unit.astype(np.float32)})
