"""The options by which `attend` and `plot` choose weights, and change heads: one language for both."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import typer

from attention_client.cli.options import Fold
from attention_client.inputs import OutputSpec
from attention_client.result import Ablation

Model = Annotated[str, typer.Option(help="The model's name; `attention-client models` lists them.")]
Layer = Annotated[str, typer.Option(help="The layer of the weights.", show_default="the last one")]
DrawnLayer = Annotated[str, typer.Option(help="The layer of the weights; * is all.", show_default="the last one")]
Heads = Annotated[
    list[int] | None,
    typer.Option("--head", min=0, help="A head of the weights; may be repeated.", show_default="all"),
]
Rows = Annotated[
    str,
    typer.Option(
        metavar="ROW,..", help="Rows of the weights, by position of the query; -1 is the last.", show_default="all"
    ),
]
Pairs = Annotated[str, typer.Option(metavar="LAYER.HEAD,..", help="Heads of several layers, in place of these two.")]
TopK = Annotated[int, typer.Option(min=0, help="The largest weights of each row alone; 0 shows all.")]
Spans = Annotated[
    list[str] | None,
    typer.Option("--span", metavar="NAME=FROM:TO", help="Sum the weights on keys FROM to before TO; may be repeated."),
]
Folded = Annotated[Fold | None, typer.Option("--fold", help="Makes the weights of all layers one.")]
From = Annotated[
    str, typer.Option("--from", metavar="WORD", help="Draw arcs from this word, or position, in place of matrices.")
]
Ablate = Annotated[str, typer.Option(metavar="LAYER.HEAD,..", help="Heads to switch off; LAYER.* is all of a layer.")]
Temperature = Annotated[
    float | None, typer.Option(help="Divides the masked scores before the softmax; above 0.", show_default="1")
]


@dataclass(frozen=True)
class ChosenWeights:
    """The choice of weights.

    Attributes:
        layers: names of layers; empty for the last one.
        heads: of one layer; empty for all.
        pairs: LAYER.HEAD, in place of both.
        top_k: the number of keys of each row; 0 for all.
        spans: name, begin and end of ranges of keys with summed weights; empty for each key by itself.
        fold: makes the layers one; None for the last one alone.
        rows: positions of the query; empty for all.
    """

    layers: tuple[str, ...] = ()
    heads: tuple[int, ...] = ()
    pairs: tuple[str, ...] = ()
    top_k: int = 0
    spans: tuple[tuple[str, int, int], ...] = ()
    fold: Fold | None = None
    rows: tuple[int, ...] = ()

    @property
    def spec(self) -> OutputSpec:
        """The output of a request."""
        spans = {name: (begin, end) for name, begin, end in self.spans}
        return OutputSpec("weights", **{**vars(self), "spans": spans})

    @property
    def layer(self) -> str:
        """The layer of the first head; empty for the last one."""
        return self.pairs[0].rpartition(".")[0] if self.pairs else next(iter(self.layers), "")

    @property
    def titles(self) -> tuple[str, ...]:
        """The names of the heads, in order; empty where all heads of a layer are shown."""
        return self.pairs or tuple([f"head {head}" for head in self.heads])


def chosen_weights(
    layer: str,
    heads: list[int] | None,
    pairs: str,
    top_k: int = 0,
    spans: list[str] | None = None,
    fold: Fold | None = None,
    rows: str = "",
) -> ChosenWeights | None:
    """Return the choice that options make; None where none is given.

    Raises:
        typer.BadParameter: --pairs stands beside --layer or --head, or a --span is no NAME=FROM:TO, or --rows
            are no numbers.
    """
    if pairs and (layer or heads):
        raise typer.BadParameter("names layers and heads; leave --layer and --head out", param_hint="--pairs")
    ranges = tuple(map(_read_span, spans or ()))
    positions = tuple(read_numbers(rows, "--rows", "0,2,-1"))
    layers = (layer,) if layer else ()
    chosen = ChosenWeights(layers, tuple(heads or ()), tuple(listed(pairs)), top_k, ranges, fold, positions)
    return None if chosen == ChosenWeights() else chosen


def _read_span(text: str) -> tuple[str, int, int]:
    name, _, ends = text.rpartition("=")
    found = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", ends)
    if not name or not found:
        raise typer.BadParameter(f"{text!r} is no NAME=FROM:TO, such as first=0:5", param_hint="--span")
    return name, int(found[1]), int(found[2])


def read_ablate(text: str) -> list[Ablation]:
    """Read `--ablate`.

    Raises:
        typer.BadParameter: an item is no LAYER.HEAD.
    """
    ablations = []
    for item in listed(text):
        layer, dot, head = item.rpartition(".")
        if not dot or not (head == "*" or (head.isascii() and head.isdigit())):
            raise typer.BadParameter(f"{item!r} is no LAYER.HEAD, such as 0.1", param_hint="--ablate")
        ablations.append(Ablation(layers=[layer], heads=[] if head == "*" else [int(head)]))
    return ablations


def read_numbers(text: str, option: str, example: str) -> list[int]:
    """Read whole numbers, separated by commas.

    Raises:
        typer.BadParameter: an item is no whole number.
    """
    items = list(listed(text))
    if wrong := [item for item in items if not re.fullmatch(r"-?[0-9]{1,9}", item, re.ASCII)]:
        raise typer.BadParameter(f"{wrong[0]!r} is no number in a list such as {example}", param_hint=option)
    return list(map(int, items))


def listed(text: str) -> Iterator[str]:
    """Return the items of a list with commas."""
    return (item.strip() for item in text.split(",") if item.strip())
