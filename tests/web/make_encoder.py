"""Makes a text model of two layers and twelve heads with random weights: `python make_encoder.py FOLDER`.

It is a separate process, so that the tests do not import torch.
"""

import sys
from pathlib import Path

import torch
from attention_export import verify
from attention_export.blocks import Dims, MultiHead
from attention_export.export import export
from attention_export.model import EarlierLayer, Model, TextFront
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

WORDS = ["[UNK]", "I", "gave", "my", "cat", "Tater", "a", "toy"]
WIDTH = 48


class Front(nn.Module):
    """Tokens (B, T) -> query (B, T, D): a vector of the word plus one of the position, which repeats after 64."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Parameter(torch.randn(len(WORDS), WIDTH))
        self.places = nn.Parameter(torch.randn(64, WIDTH))

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        return (self.words[tokens] + self.places[torch.arange(tokens.shape[1]) % 64],)


class Residual(nn.Module):
    """Query and output (B, T, D) -> a tuple of the next query."""

    def forward(self, query: Tensor, output: Tensor) -> tuple[Tensor]:
        return (query + output,)


def block() -> MultiHead:
    made = MultiHead(Dims(query=WIDTH, heads=12))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    return made


def main() -> None:
    torch.set_num_threads(1)
    verify.LENGTHS = ((2, 7),)  # the pages of this model are tested, not its numbers
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model = Model(
        block(),
        "Two layers of twelve heads, with drawn weights.",
        text=TextFront(tokenizer, Front(), allow_unknown=True),
        earlier=[EarlierLayer(block(), Residual())],
    )
    export(model, Path(sys.argv[1]), "encoder", 1)


if __name__ == "__main__":
    main()
