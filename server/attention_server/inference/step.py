"""One query behind a prefix, computed in NumPy: k and v are read where they are kept, and weights cost nothing more.

Behind 512 positions a graph of one query takes 1.5 times as long, and it needs k and v in one piece.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Layer

from attention_server.inference import row_statistics
from attention_server.inference.engine.protocol import Run
from attention_server.inference.layer import LoadedLayer, Tensors
from attention_server.inference.masks import HIDDEN, Vectors
from attention_server.inference.scores import sinks_of, softmax, split_heads

Pieces = Sequence[tuple[Vectors, Vectors]]  # k and v, each [rows, width], of consecutive positions
BLOCK_ROWS = 256  # of k and v: a block stays in the processor's cache for all heads


def step_stages(
    layer: LoadedLayer,
    tensors: Tensors,
    sequences: Sequence[Pieces],
    added: Vectors | None,
    wanted: frozenset[str],
    run: Run,
) -> dict[str, Any]:
    """Return the stages wanted of a site for one query each of some sequences; set their heads among the tensors.

    Args:
        layer: the site.
        tensors: q, [B, 1, width]; receives heads.
        sequences: k and v of each sequence, the query's own last.
        added: the request's mask, [1 or H, 1, S], of one sequence; None for no mask.
        wanted: names of stages, without k and v.
        run: the computation that this is a part of.

    Returns:
        Arrays [B, H, 1, ..]; of several sequences, with different numbers of keys, a list of arrays [H, 1, S].
    """
    found = [_step(layer, q[0], pieces, added, wanted, run) for q, pieces in zip(tensors["q"], sequences, strict=True)]
    tensors["heads"] = np.stack([each.heads for each in found])
    stages: dict[str, Any] = {}
    if "q" in wanted:
        stages["q"] = split_heads(tensors["q"], layer.about.heads)
    if "heads" in wanted:
        stages["heads"] = split_heads(tensors["heads"], layer.about.heads)
    for name in ("weights", "scores", "lse"):
        if name in wanted:
            stages[name] = [getattr(each, name) for each in found]
    if "entropy" in wanted:
        stages["entropy"] = [row_statistics.entropy(each.weights) for each in found]
    if len(found) == 1:
        stages |= {name: stages[name][0][None] for name in ("weights", "scores", "lse", "entropy") if name in stages}
    return stages


def _step(
    layer: LoadedLayer, q: Vectors, pieces: Pieces, added: Vectors | None, wanted: frozenset[str], run: Run
) -> "StepResult":
    """Compute one query over the keys that the site's window leaves, or all keys where scores are wanted."""
    about = layer.about
    keys = sum([len(k) for k, _ in pieces])
    bias = layer.step_bias(keys - 1, run)
    begin = max(0, keys - about.window) if about.window else 0
    if "scores" in wanted:
        window = np.where(np.arange(keys) < begin, HIDDEN, np.float32(0))[None, None] if begin else None
        added = window if added is None or window is None else added + window
        return attend_step(about, q, pieces, bias, added)
    seen = [None if each is None else each[..., begin:] for each in (bias, added)]
    result = attend_step(about, q, _behind(pieces, begin), *seen)
    if not begin:
        return result
    weights = np.zeros((about.heads, 1, keys), np.float32)
    weights[..., begin:] = result.weights
    return result._replace(weights=weights)


def _behind(pieces: Pieces, begin: int) -> Pieces:
    """Return k and v of the positions from `begin`."""
    left = []
    for k, v in pieces:
        if begin < len(k):
            left.append((k[begin:], v[begin:]))
        begin = max(0, begin - len(k))
    return left


class StepResult(NamedTuple):
    """The stages of a site for one query.

    Attributes:
        heads: [1, H * Dv].
        weights: [H, 1, S].
        scores: before the mask, [H, 1, S].
        added: the masks.
    """

    heads: Vectors
    weights: Vectors
    scores: Vectors
    added: Vectors | None

    @property
    def lse(self) -> Vectors:
        """The log of the sum of exp of the masked scores, [H, 1]."""
        return row_statistics.lse(self.scores, self.added)


def attend_step(about: Layer, q: Vectors, pieces: Pieces, bias: Vectors | None, added: Vectors | None) -> StepResult:
    """Compute the attention of one query.

    Args:
        about: the site.
        q: [H * Dh].
        pieces: of all S keys.
        bias: the model's own, added to the scores, [1 or H, 1, S]; None for none.
        added: masks, added to these, [1 or H, 1, S]; None for none.
    """
    groups = about.key_value_heads
    shared = q.reshape(groups, about.heads // groups, -1)
    shared = shared * np.float32(about.scale or shared.shape[-1] ** -0.5)
    blocks = list(_blocks(pieces, groups))
    scores = np.empty((*shared.shape[:2], blocks[-1].end), np.float32)
    for block in blocks:
        np.matmul(shared, block.k.transpose(1, 2, 0), out=scores[:, :, block.begin : block.end])
    told = scores.reshape(about.heads, 1, -1)
    if about.softcap:
        told = np.float32(about.softcap) * np.tanh(told / np.float32(about.softcap))
    told = told if bias is None else told + bias
    weights = softmax(told if added is None else told + added, sinks_of(about))
    by_group = weights.reshape(scores.shape)
    first, *others = blocks
    heads = by_group[:, :, : first.end] @ first.v.transpose(1, 0, 2)
    for block in others:
        heads += by_group[:, :, block.begin : block.end] @ block.v.transpose(1, 0, 2)
    return StepResult(heads.reshape(1, -1), weights, told, added)


class _Block(NamedTuple):
    """Some rows of k and v, each [rows, Hkv, width], at the positions from `begin`."""

    begin: int
    end: int
    k: Vectors
    v: Vectors


def _blocks(pieces: Pieces, groups: int) -> "list[_Block]":
    blocks, begin = [], 0
    for k, v in pieces:
        for start in range(0, len(k), BLOCK_ROWS):
            keys, values = k[start : start + BLOCK_ROWS], v[start : start + BLOCK_ROWS]
            end = begin + len(keys)
            blocks.append(
                _Block(begin, end, keys.reshape(len(keys), groups, -1), values.reshape(len(keys), groups, -1))
            )
            begin = end
    return blocks
