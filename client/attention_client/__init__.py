"""Attention Service from Python: NumPy arrays or text in, outputs and attention weights out.

    from attention_client import AttentionClient

    with AttentionClient("127.0.0.1:50051") as client:
        result = client.attend("multi-head", text="I gave my cat Tater a toy", outputs=["weights"])
        result.weights  # float32 [H, T, S]

Every failure raises an `AttentionError`; `attention_client.errors` draws the tree of its classes.

Imports go downwards only: `display` over `api`, `streaming` and `wire`; below all of these the data of calls (`inputs`,
`memory`, `result`) and `errors`.
"""

from typing import Any

from attention_client import display  # noqa: F401  # registers the notebook's view of a result
from attention_client.api.aio import AsyncAttentionClient
from attention_client.api.client import AttentionClient
from attention_client.api.generate import GeneratedToken
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
from attention_client.inputs import OutputSpec, Sample, Sequence
from attention_client.memory import Memory
from attention_client.result import Ablation, Alignment, AttendResult, Candidate, Link, Prediction, Tokenization, TopK

__all__ = [
    "Ablation",
    "Alignment",
    "AsyncAttentionClient",
    "AttendResult",
    "AttentionClient",
    "AttentionError",
    "Candidate",
    "DeadlineExceeded",
    "GeneratedToken",
    "InternalError",
    "InvalidRequest",
    "Link",
    "Memory",
    "NotFound",
    "NotRequested",
    "OutputSpec",
    "PermissionDenied",
    "Prediction",
    "Sample",
    "Sequence",
    "Tokenization",
    "TooLarge",
    "TopK",
    "Translation",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "translate",
    "translate_async",
]

__version__: str


def __getattr__(name: str) -> Any:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version  # noqa: PLC0415  # slow to import, and seldom asked for

    return version("attention-service")
