"""Attention in NumPy and float64, from a version's folder alone: its manifest's widths and its matrices.

Written from the formulas, apart from the code under test; loops where that is plainer.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

STAGES = ("q", "k", "v", "scores", "weights", "entropy", "lse", "heads", "output")
ROWS = dict.fromkeys(STAGES, 1) | {"output": 0}  # the axis of each stage's rows
# Torch's float32 against float64: the tolerance that exports are verified with.
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


@dataclass(frozen=True)
class Block:
    """One layer.

    Attributes:
        layer: its entry in the manifest, JSON.
        matrices: M_Q .. b_O in float64; empty for dot_product.
    """

    layer: dict[str, Any]
    matrices: dict[str, np.ndarray]

    @property
    def bias(self) -> np.ndarray:
        """b_O, [D]; zeros where there is none."""
        return self.matrices.get("b_O", np.zeros(self.layer.get("output_dim", 1)))

    def stages(
        self,
        query: np.ndarray,
        key: np.ndarray | None = None,
        value: np.ndarray | None = None,
        added: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Compute all stages of one sequence.

        Args:
            query: [T, Dq].
            key: [S, Dk].
            value: [S, Dv].
            added: a summand of the scores, broadcastable to [H, T, S].
        """
        key = query if key is None else key
        value = key if value is None else value
        layer = self.layer
        heads, shared = layer["heads"], layer.get("key_value_heads", layer["heads"])
        q = split(self.affine(query, "Q"), heads)
        k = split(self.affine(key, "K"), shared)
        v = split(self.affine(value, "V"), shared)
        scale = layer.get("scale") or q.shape[-1] ** -0.5
        scores, weights, logs, attended = [], [], [], []
        for head in range(heads):
            theirs = head // (heads // shared)
            score = scale * q[head] @ k[theirs].T
            if softcap := layer.get("softcap"):
                score = softcap * np.tanh(score / softcap)
            scores.append(score)
            mask = 0.0 if added is None else np.broadcast_to(added, (heads, *score.shape))[head]
            weights.append(softmax(score + mask))
            logs.append([lse(row) for row in score + mask])
            attended.append(weights[-1] @ v[theirs])
        joined = np.concatenate(attended, -1)
        nats = [[entropy(row) for row in of_head] for of_head in weights]
        found = (q, k, v, scores, weights, nats, logs, attended, self.affine(joined, "O"))
        stages = {name: np.array(stage) for name, stage in zip(STAGES, found, strict=True)}
        if "M_O" in self.matrices:
            rows = np.split(self.matrices["M_O"], heads)
            stages["contributions"] = np.array([x @ own for x, own in zip(attended, rows, strict=True)])
        return stages

    def affine(self, x: np.ndarray, name: str) -> np.ndarray:
        """x.M + b; x itself where nothing is learned."""
        x = np.asarray(x, np.float64)
        if f"M_{name}" not in self.matrices:
            return x
        return x @ self.matrices[f"M_{name}"] + self.matrices.get(f"b_{name}", 0.0)


def read_block(repository: Path, name: str, version: int = 1) -> Block:
    """Read a version's layer."""
    folder = repository / name / str(version)
    (layer,) = json.loads((folder / "manifest.json").read_text())["layers"]
    matrices = load_file(folder / layer["weights"]["name"]) if "weights" in layer else {}
    return Block(layer, {matrix: content.astype(np.float64) for matrix, content in matrices.items()})


def split(x: np.ndarray, heads: int) -> np.ndarray:
    """[T, H * D] -> [H, T, D]."""
    return np.stack(np.split(x, heads, axis=-1))


def softmax(scores: np.ndarray) -> np.ndarray:
    """Turn each row into weights; a row of nothing but -inf into zeros."""
    weights = np.zeros_like(scores)
    for row in np.ndindex(scores.shape[:-1]):
        if np.isfinite(scores[row]).any():
            shifted = np.exp(scores[row] - scores[row].max())
            weights[row] = shifted / shifted.sum()
    return weights


def entropy(row: np.ndarray) -> float:
    """The sum of w * log(1 / w), in nats, over the weights that are not 0."""
    return float(sum(weight * np.log(1 / weight) for weight in row if weight > 0))


def lse(row: np.ndarray) -> float:
    """The log of the sum of exp; -1e30 where nothing is left."""
    return float(np.log(np.exp(row - row.max()).sum()) + row.max()) if np.isfinite(row).any() else -1e30


def statistics(weights: np.ndarray, rows: list[int], separators: list[int] | None = None) -> np.ndarray:
    """The eight means of each head, row by row: weights [H, T, S] -> [H, 8]."""
    found = []
    for head in weights:
        of_rows = []
        for row in rows:
            if not head[row].any():
                continue
            neighbours = [head[row, row + i] if 0 <= row + i < head.shape[1] else 0.0 for i in (-1, 0, 1)]
            distance = sum(weight * abs(row - key) for key, weight in enumerate(head[row]))
            special = sum(head[row, key] for key in separators or ())
            largest = max(head[row])
            of_rows.append([entropy(head[row]), *neighbours, head[row, 0], special, distance, largest])
        found.append(np.mean(of_rows, 0) if of_rows else np.zeros(8))
    return np.array(found)


def additive(mask: dict[str, Any], heads: int, queries: int, keys: int) -> np.ndarray:
    """The summand of a mask for the scores, [H, T, S], position by position."""
    added = np.zeros((heads, queries, keys))
    shift = keys - queries if mask.get("causal") == "bottom_right" else 0
    window = {"left": -1, "right": -1} | mask.get("window", {})
    allowed = np.broadcast_to(mask.get("allowed", True), added.shape)
    bias = np.broadcast_to(np.asarray(mask.get("bias", 0.0), np.float64), added.shape)
    for h, i, j in np.ndindex(added.shape):
        here = i + shift  # the key that this query stands at
        seen = allowed[h, i, j]
        seen &= mask.get("causal", "none") == "none" or j <= here
        seen &= window["left"] == -1 or j >= here - window["left"]
        seen &= window["right"] == -1 or j <= here + window["right"]
        added[h, i, j] = bias[h, i, j] if seen else -np.inf
    return added


@dataclass(frozen=True)
class Case:
    """A model of the test repository and the widths that it takes."""

    model: str
    query: int
    key: int
    value: int

    def vectors(self, rng: np.random.Generator, queries: int, keys: int) -> dict[str, np.ndarray]:
        """Draw a query, a key and a value."""
        widths = {"query": (queries, self.query), "key": (keys, self.key), "value": (keys, self.value)}
        return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in widths.items()}


BLOCKS = [
    Case("dot", 7, 7, 5),
    Case("grouped", 16, 8, 6),
    Case("self", 12, 12, 10),
    Case("multi", 24, 24, 24),
    Case("cross", 16, 12, 10),
]
