"""The requests and the report of every client: `python CLIENT.py REST_ADDRESS GRPC_ADDRESS FOLDER`.

Runs in the clients' environment and in the tests' own, so it knows NumPy alone. Arrays are drawn here, the same each
time, so that the tests can ask the same through attention.v1.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    """One request: inputs by name, outputs by name (none: the model's own choice), parameters."""

    model: str
    inputs: dict[str, np.ndarray]
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = MappingProxyType({})


def drawn(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


TEXTS = ["I gave my cat Tater a toy", "Mia was shown a letter by Leo"]

CASES = {
    "lengths": Case(
        "multi",
        {"query": drawn(3, 6, 24, seed=1), "query_lengths": np.array([6, 4, 1], np.int64)},
        ("output", "weights", "q"),
        {"causal": "top_left", "window_left": 2},
    ),
    "memory": Case(
        "cross",
        {
            "query": drawn(2, 4, 16, seed=2),
            "key": drawn(2, 5, 12, seed=3),
            "value": drawn(2, 5, 10, seed=4),
            "key_lengths": np.array([5, 2], np.int64),
            "allowed": np.random.default_rng(5).random((2, 1, 4, 5)) < 0.7,
            "bias": drawn(2, 4, 1, 5, seed=6),
        },
        ("heads", "weights", "scores", "entropy", "k", "v"),
        {"weights.top_k": 2, "scores.heads": "2,0", "scores.reduce": "max"},
    ),
    "text": Case(
        "multi-head",
        {"text": np.array(TEXTS, object)},
        ("weights", "tokens", "predictions.name", "predictions.label", "predictions.probability"),
    ),
    "unnamed": Case("multi", {"query": drawn(1, 3, 24, seed=7)}),
    "half": Case(
        "dot",
        {"query": drawn(2, 3, 4, seed=8).astype(np.float16)},
        ("output", "weights"),
        {"weights.rows": -1, "output.data_type": "FP16"},
    ),
}

DATA_TYPES = {"float32": "FP32", "float16": "FP16", "int64": "INT64", "bool": "BOOL", "object": "BYTES"}


def data_type(array: np.ndarray) -> str:
    return DATA_TYPES[array.dtype.name]


def addresses() -> tuple[str, str]:
    return sys.argv[1], sys.argv[2]


def report(answers: dict[str, dict[str, np.ndarray]], facts: dict[str, Any]) -> None:
    """Write the report for the test: answers by case and output, and further facts."""
    folder = Path(sys.argv[3])
    arrays = {f"{case}/{name}": plain(array) for case, outputs in answers.items() for name, array in outputs.items()}
    np.savez(folder / "answers.npz", **arrays)
    (folder / "facts.json").write_text(json.dumps(facts))


def plain(array: np.ndarray) -> np.ndarray:
    """Make texts of objects, which are not written without pickling."""
    if array.dtype != object:
        return array
    texts = [each.decode() if isinstance(each, bytes) else str(each) for each in array.ravel()]
    return np.array(texts, dtype=str).reshape(array.shape)
