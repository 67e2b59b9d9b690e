"""Scores of a site by the constants of its manifest: [B, H, T, S] in float32."""

from typing import Any

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Layer
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


def raw_scores(about: Layer, q: Vectors, k: Vectors) -> Vectors:
    """Return q.k * scale behind the softcap, without a bias.

    Args:
        about: the site.
        q: [B, H, T, Dh].
        k: [B, Hkv, S, Dh].
    """
    shared = np.repeat(k, about.heads // about.key_value_heads, 1) if about.key_value_heads < about.heads else k
    scores: Vectors = (q @ shared.transpose(0, 1, 3, 2)) * np.float32(about.scale or q.shape[-1] ** -0.5)
    return np.float32(about.softcap) * np.tanh(scores / np.float32(about.softcap)) if about.softcap else scores


def sinks_of(layer: Layer) -> Vectors | None:
    """Return the score of one key more of each head, [H]: the sinks, or 0 for a key of zeros; None without one."""
    if layer.sinks:
        return np.array(layer.sinks, np.float32)
    return np.zeros(layer.heads, np.float32) if layer.zero_key else None


def split_heads(x: NDArray[Any], heads: int) -> Vectors:
    """[B, length, heads * width] -> [B, heads, length, width], a view."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def softmax(masked: Vectors, sinks: Vectors | None, temperature: float = 1.0) -> Vectors:
    """Make weights of masked scores: the softmax over the last axis; zeros in a row without keys.

    Args:
        masked: scores with masks, [.., H, T, S].
        sinks: the score of one key more of each head, [H], which takes a part of each row; None for none.
        temperature: above 0; it divides the sinks too.
    """
    largest = masked.max(-1, keepdims=True)
    of_heads = None if sinks is None else sinks[:, None, None]
    if of_heads is not None:
        largest = np.maximum(largest, of_heads)
    largest = np.where(largest == -np.inf, np.float32(0), largest)
    factor = np.float32(1 / temperature)
    with np.errstate(over="ignore"):  # of a very low temperature: exp of -inf is 0
        powers = masked - largest  # the one array as large as the scores that is made here
        powers *= factor
        np.exp(powers, out=powers)
        sums = powers.sum(-1, keepdims=True)
        if of_heads is not None:
            sums = sums + np.exp((of_heads - largest) * factor)
    powers /= np.where(sums > 0, sums, np.float32(1))
    return powers
