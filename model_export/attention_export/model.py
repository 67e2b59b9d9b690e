"""A model to export: a block, with a front for text and a head for predictions."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from attention_proto.attention.v1.attention_pb2 import Example, Predictor, Training
from tokenizers import Tokenizer
from torch import nn

from attention_export.blocks import DotProduct


@dataclass(frozen=True)
class TextFront:
    """The conversion of text to vectors.

    Attributes:
        tokenizer: text -> tokens; its unknown token marks words outside the vocabulary.
        front: tokens INT64 (B, T) -> a tuple of query, or query and key, or query, key and value, each (B, T, width).
        memory_tokenizer: the tokenizer of the memory text; `tokenizer` when absent.
        memory_front: memory tokens INT64 (B, S) -> a tuple of key, or key and value, each (B, S, width).
        allow_unknown: whether unknown words are read as the unknown token.
        max_tokens, max_memory_tokens: the limits of length; 0 is no limit.
    """

    tokenizer: Tokenizer
    front: nn.Module
    memory_tokenizer: Tokenizer | None = None
    memory_front: nn.Module | None = None
    allow_unknown: bool = False
    max_tokens: int = 0
    max_memory_tokens: int = 0


@dataclass(frozen=True)
class Model:
    """A block with its surroundings.

    Attributes:
        block: the served attention.
        description: one sentence for users.
        text: the conversion of text to vectors; None for vectors only.
        head: output rows (N, D) -> a tuple of probabilities (N, labels), one for each of `predictors`, in order.
        predictors: the name, labels and rows of each prediction.
        training: the record of the training.
        license: the weights' license, an SPDX expression; empty if unknown.
        source: the origin of imported weights.
        examples: texts to try it with.
    """

    block: DotProduct
    description: str
    text: TextFront | None = None
    head: nn.Module | None = None
    predictors: Sequence[Predictor] = field(default_factory=tuple)
    training: Training | None = None
    license: str = ""
    source: str = ""
    examples: Sequence[Example] = field(default_factory=tuple)
