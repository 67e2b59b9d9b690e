"""A model to export: a block, with a front for text and a head for predictions."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from attention_proto.attention.v1.attention_pb2 import Predictor, Training
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
class EarlierLayer:
    """A layer before the last one.

    Attributes:
        block: its attention.
        after: the transition to the next layer: query (B, T, D), output (B, T, D) -> the next query (B, T, D).
    """

    block: DotProduct
    after: nn.Module


@dataclass(frozen=True)
class Model:
    """A block with its surroundings.

    Attributes:
        block: the served attention; of several layers, the last.
        description: one sentence for users.
        text: the conversion of text to vectors; None for vectors only.
        head: output rows (N, D) -> a tuple of probabilities (N, labels), one for each of `predictors`, in order.
        predictors: the name, labels and rows of each prediction.
        training: the record of the training.
        license: the weights' license, an SPDX expression; empty if unknown.
        source: the origin of imported weights.
        earlier: the layers before the last, in computing order.
        layer_names: the layers' names in requests; "0", "1", .. when not given.
    """

    block: DotProduct
    description: str
    text: TextFront | None = None
    head: nn.Module | None = None
    predictors: Sequence[Predictor] = field(default_factory=tuple)
    training: Training | None = None
    license: str = ""
    source: str = ""
    earlier: Sequence[EarlierLayer] = ()
    layer_names: Sequence[str] = ()

    def named_layers(self) -> list[tuple[str, DotProduct, nn.Module | None]]:
        """Return each layer's name, its block, and its transition to the next; None behind the last."""
        layers: list[tuple[DotProduct, nn.Module | None]] = [(layer.block, layer.after) for layer in self.earlier]
        layers.append((self.block, None))
        names = self.layer_names or [str(index) for index in range(len(layers))]
        return [(name, *layer) for name, layer in zip(names, layers, strict=True)]
