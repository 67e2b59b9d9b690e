"""Small layers of the text fronts and heads around a served block."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attention_export.blocks import Dims, MultiHead


class Embedding(nn.Module):
    """A token's embedding plus its position's: tokens INT64 (B, T) -> (B, T, D), T up to `max_tokens`."""

    def __init__(self, vocabulary: int, max_tokens: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(max_tokens, width))

    def forward(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.tokens(tokens)
        return embedded + self.positions[: tokens.shape[1]]


class Context(nn.Module):
    """An attention layer that mixes neighbours into each token: x -> norm(x + attention(x)), (B, T, D)."""

    def __init__(self, width: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.attention = MultiHead(Dims(query=width, heads=heads))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        mask = hide_future(x) if self.causal else None
        mixed: Tensor = self.norm(x + self.attention(x, mask=mask).output)
        return mixed


class Readouts(nn.Module):
    """Linear classifiers, each reading an equal part of a row: (.., D) -> a tuple of (.., labels)."""

    def __init__(self, width: int, labels: Sequence[int]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(width // len(labels), count) for count in labels)

    def logits(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return the logits."""
        return tuple(part(x) for part, x in zip(self.parts, rows.chunk(len(self.parts), -1), strict=True))

    def forward(self, rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(logits.softmax(-1) for logits in self.logits(rows))


def drop_context(embedded: Tensor, mixed: Tensor, share: float) -> Tensor:
    """Replace a random share of the words, (B, T, D), by plain embeddings, before `Context` mixed in neighbours.

    For a block's values in training: information about a word is then reliable at that word's own position only, so
    the block learns to put its weights there.
    """
    return torch.where(torch.rand(*mixed.shape[:2], 1) < share, embedded, mixed)


def hide_future(x: Tensor) -> Tensor:
    """Return the mask of causal self-attention over x, (B, T, D) -> (T, T)."""
    positions = torch.arange(x.shape[1], device=x.device)
    return torch.where(positions[:, None] < positions, -math.inf, 0.0)
