"""Makes the repository that the tests are served from: `python make_repository.py FOLDER`.

A process of its own, so that the tests stay free of torch. Weights and biases are drawn, biases too, so that no
stage is zero by luck.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from attention_export import verify
from attention_export.blocks import CrossAttention, Dims, DotProduct, MultiHead, SelfAttention
from attention_export.export import export
from attention_export.model import Model, TextFront
from attention_proto.attention.v1.attention_pb2 import Predictor
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

ENGLISH = ["[UNK]", "twenty", "one", "cats", "and", "dogs"]
GERMAN = ["[UNK]", "ein", "und", "zwanzig", "Katzen", "Hunde"]


class Fronts(nn.Module):
    """Tokens (B, T) -> a tuple of vectors, each (B, T, width)."""

    def __init__(self, words: int, *widths: int) -> None:
        super().__init__()
        self.tables = nn.ParameterList(torch.randn(words, width) for width in widths)

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        return tuple(table[tokens] for table in self.tables)


class Heads(nn.Module):
    """Rows of the output (N, D) -> probabilities (N, labels) of each predictor."""

    def __init__(self, width: int, *labels: int) -> None:
        super().__init__()
        self.readers = nn.ParameterList(torch.randn(width, count) for count in labels)

    def forward(self, output: Tensor) -> tuple[Tensor, ...]:
        return tuple((output @ reader).softmax(-1) for reader in self.readers)


def drawn(block: DotProduct, seed: int) -> DotProduct:
    """Draw a block's matrices and biases."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return block


def tokenizer(words: list[str]) -> Tokenizer:
    """Make a tokenizer of whole words."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def text_model() -> Model:
    """Make a model that reads a text and a memory text, and predicts from each kind of rows."""
    torch.manual_seed(7)
    block = drawn(CrossAttention(Dims(query=8, key=6, value=4, heads=2)), 7)
    predictors = [
        Predictor(name="each", rows=Predictor.ROWS_ALL, labels=["a", "b", "c"]),
        Predictor(name="first", rows=Predictor.ROWS_FIRST, labels=["a", "b"]),
        Predictor(name="last", rows=Predictor.ROWS_LAST, labels=["a", "b"]),
        Predictor(name="mean", rows=Predictor.ROWS_MEAN, labels=["a", "b", "c", "d"]),
    ]
    front = TextFront(
        tokenizer(ENGLISH),
        Fronts(len(ENGLISH), 8),
        tokenizer(GERMAN),
        Fronts(len(GERMAN), 6, 4),
        allow_unknown=True,
        max_tokens=5,
        max_memory_tokens=6,
    )
    return Model(block, "Reads two texts.", text=front, head=Heads(8, 3, 2, 2, 4), predictors=predictors)


def repository() -> Iterator[tuple[str, int, Model]]:
    """Yield every model by name and version."""
    yield "dot", 1, Model(DotProduct(), "Plain dot products.")
    grouped = DotProduct(Dims(query=16, key=8, value=6, heads=4, key_value_heads=2), scale=0.3, softcap=2.0)
    yield "grouped", 1, Model(grouped, "Grouped queries, scale and softcap.")
    yield "self", 1, Model(drawn(SelfAttention(Dims(query=12)), 1), "Self-attention.")
    # A value width of its own, and no bias.
    yield "self", 2, Model(drawn(SelfAttention(Dims(query=12, value=10), bias=False), 2), "Another.")
    multi = MultiHead(Dims(query=24, heads=3, value_head=5, output=20))
    yield "multi", 1, Model(drawn(multi, 3), "Three heads.")
    yield "cross", 1, Model(drawn(CrossAttention(Dims(query=16, key=12, value=10, heads=4)), 4), "From a memory.")
    yield "text-cross", 1, text_model()


def main() -> None:
    torch.set_num_threads(1)
    verify.LENGTHS = ((2, 7),)  # the tests compare these models with float64; all lengths are those of test_export
    for name, version, model in repository():
        export(model, Path(sys.argv[1]), name, version, progress=lambda step: print(step, flush=True))


if __name__ == "__main__":
    main()
