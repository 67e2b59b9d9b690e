"""Attention Service from Python: NumPy arrays or text in, outputs and attention weights out.

    from attention_client import AttentionClient

    with AttentionClient("127.0.0.1:50051") as client:
        result = client.attend("multi-head", text="I gave my cat Tater a toy", outputs=["weights"])
        result.weights  # float32 [H, T, S]

Whatever fails raises an `AttentionError`; the tree of them is drawn in `attention_client.errors`.
"""

from attention_client.api.aio import AsyncAttentionClient
from attention_client.api.client import AttentionClient
from attention_client.api.translate import Translation, translate, translate_async
from attention_client.errors import (
    AttentionError,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    NotFound,
    NotRequested,
    PermissionDenied,
    TooLarge,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from attention_client.memory import Memory
from attention_client.result import AttendResult, Prediction, TopK
from attention_client.wire.request import OutputSpec, Sequence

__all__ = [
    "AsyncAttentionClient",
    "AttendResult",
    "AttentionClient",
    "AttentionError",
    "DeadlineExceeded",
    "InternalError",
    "InvalidRequest",
    "Memory",
    "NotFound",
    "NotRequested",
    "OutputSpec",
    "PermissionDenied",
    "Prediction",
    "Sequence",
    "TooLarge",
    "TopK",
    "Translation",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "translate",
    "translate_async",
]
