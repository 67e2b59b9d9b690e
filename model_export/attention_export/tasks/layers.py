"""The layers before and behind a served block: small layers, of which a text front and a head are made."""

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
    """Lets each token know its neighbours: x -> norm(x + attention(x)), (B, T, D)."""

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


def drop_context(bare: Tensor, mixed: Tensor, share: float) -> Tensor:
    """Replace that share of the words, (B, T, D), by what they were before their neighbours were mixed in.

    For the values of a block in training: it cannot rely on what a word heard from others, so it learns to look at the
    word that says what it wants to know, and its weights can be believed.
    """
    return torch.where(torch.rand(*mixed.shape[:2], 1) < share, bare, mixed)


def hide_future(x: Tensor) -> Tensor:
    """Return the mask of causal self-attention over x, (B, T, D) -> (T, T)."""
    positions = torch.arange(x.shape[1], device=x.device)
    return torch.where(positions[:, None] < positions, -math.inf, 0.0)
