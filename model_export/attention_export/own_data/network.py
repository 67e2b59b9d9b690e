"""The network for user data: front, block and head, sized by the data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from attention_export.blocks import BLOCKS, Dims, DotProduct, SelfAttention, Stages
from attention_export.own_data.examples import NO_ANSWER, Examples, Padded

UNKNOWN_SHARE = 0.05  # share of training words replaced by the unknown token, which is trained so
EVALUATION_BATCH = 256  # examples


@dataclass(frozen=True)
class Sizes:
    """The sizes of a network.

    Attributes:
        vocabulary: the number of words, including the unknown one; 0 for vectors.
        query, key: the widths of the vectors, or of the embedding for words.
        width: the width of the block's output.
        heads: H.
        max_tokens: the length of the longest text or memory text to be served.
        longest, longest_memory: the lengths of the longest sequences in the data; 0 without a memory.
        labels: the number of classes of each predictor.
        tagged: whether the head reads every row; otherwise the mean of the rows.
    """

    vocabulary: int
    query: int
    key: int
    width: int
    heads: int
    max_tokens: int
    longest: int
    longest_memory: int
    labels: Sequence[int]
    tagged: bool


class Front(nn.Module):
    """A word's embedding plus its position's: tokens INT64 (B, T) -> query or key (B, T, D), T up to `max_tokens`.

    Word vectors start at about length 1, so that the unscaled dot product starts with even weights. Position vectors
    start at a tenth of that; training grows them if the data depend on order. Those behind the longest sequence of the
    data are zeros, since no training reaches them.
    """

    def __init__(self, words: nn.Embedding, max_tokens: int, longest: int) -> None:
        super().__init__()
        self.words = words
        trained = 0.1 * torch.randn(longest, words.embedding_dim) * words.embedding_dim**-0.5
        self.positions = nn.Parameter(functional.pad(trained, (0, 0, 0, max_tokens - longest)))

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        places = torch.arange(tokens.shape[1], device=tokens.device)  # a slice would not export for T below 7
        return (self.words(tokens) + self.positions[places],)


class Head(nn.Module):
    """A linear classifier for each predictor: rows (.., D) -> a tuple of probabilities (.., labels)."""

    def __init__(self, width: int, labels: Sequence[int]) -> None:
        super().__init__()
        self.predictors = nn.ModuleList(nn.Linear(width, count) for count in labels)

    def logits(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return the logits."""
        return tuple(predictor(rows) for predictor in self.predictors)

    def forward(self, rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(logits.softmax(-1) for logits in self.logits(rows))


class Network(nn.Module):
    """A front (for words only), a block and a head."""

    def __init__(self, block: str, sizes: Sizes) -> None:
        super().__init__()
        self.tagged = sizes.tagged
        self.front: Front | None = None
        self.memory_front: Front | None = None
        if sizes.vocabulary:
            words = nn.Embedding(sizes.vocabulary, sizes.query)
            nn.init.normal_(words.weight, std=sizes.query**-0.5)
            self.front = Front(words, sizes.max_tokens, sizes.longest)
            if sizes.longest_memory:  # a word means the same on both sides
                self.memory_front = Front(words, sizes.max_tokens, sizes.longest_memory)
        self.block = make_block(block, sizes)
        self.head = Head(sizes.width, sizes.labels)

    def forward(self, examples: Examples) -> Stages:
        """Attend from each position over its sequence or memory; padding is masked."""
        keys = examples.memory or examples.sequence
        query = self._vectors(self.front, examples.sequence)
        key = self._vectors(self.memory_front, examples.memory) if examples.memory else None
        mask = torch.where(keys.valid(), 0.0, -math.inf)[:, None, None]  # (B, 1, 1, S)
        stages: Stages = self.block(query, key, mask=mask)
        return stages

    def logits(self, examples: Examples) -> tuple[Tensor, ...]:
        """Return the scores of each predictor's labels, (B, labels), or (B, T, labels) of a tagger."""
        output = self(examples).output  # (B, T, D)
        if self.tagged:
            return self.head.logits(output)
        valid = examples.sequence.valid()[..., None]
        return self.head.logits((output * valid).sum(1) / valid.sum(1))

    def loss(self, examples: Examples) -> Tensor:
        """Return the cross-entropy, summed over predictors and averaged over labels."""
        pairs = zip(self.logits(examples), examples.answers.unbind(1), strict=True)
        return torch.stack(
            [
                functional.cross_entropy(logits.flatten(0, -2), answers.flatten(), ignore_index=NO_ANSWER)
                for logits, answers in pairs
            ]
        ).sum()

    def _vectors(self, front: Front | None, padded: Padded) -> Tensor:
        if front is None:
            return padded.rows
        tokens = padded.rows
        if self.training:
            tokens = torch.where(torch.rand(tokens.shape) < UNKNOWN_SHARE, 0, tokens)
        (vectors,) = front(tokens)
        assert isinstance(vectors, Tensor)
        return vectors


def make_block(name: str, sizes: Sizes) -> DotProduct:
    """Make a block of these widths, with matrices drawn from torch's generator.

    Raises:
        ValueError: heads do not divide the width.
    """
    if sizes.width % sizes.heads:
        raise ValueError(f"{sizes.heads} heads do not divide the width {sizes.width}; choose a multiple of the heads")
    kind, head = BLOCKS[name], sizes.width // sizes.heads
    if issubclass(kind, SelfAttention):
        return kind(Dims(sizes.query, sizes.key, heads=sizes.heads, head=head, output=sizes.width))
    return kind(Dims(sizes.query, sizes.key, sizes.key, heads=sizes.heads, head=head, value_head=head))


class Score(NamedTuple):
    """A network's loss and the accuracy of each predictor."""

    loss: float
    accuracies: list[float]


@torch.no_grad()
def score(network: Network, examples: Examples) -> Score:
    """Measure a network, and leave it in evaluation mode."""
    network.eval()
    loss, right, count = 0.0, torch.zeros(examples.answers.shape[1]), 0
    for batch in examples.batches(EVALUATION_BATCH):
        answered = int((batch.answers[:, 0] != NO_ANSWER).sum())
        said = torch.stack([logits.argmax(-1) for logits in network.logits(batch)], 1)  # (B, P) or (B, P, T)
        right += (said == batch.answers).transpose(0, 1).flatten(1).sum(1)
        loss += float(network.loss(batch)) * answered
        count += answered
    return Score(loss / count, [float(each) / count for each in right])
