"""The stages that a model can return, and the options of an output: the source of every such list.

The planner, the prediction of an answer's size, the Open Inference Protocol's metadata, the columns of scored files,
the client's checks, the contract's comment and the OpenAPI document read it. `docs/extending.md` says how to add a
stage.

Axes: H heads, Hkv key-value heads, T query positions, S key positions, Dh the width of one head's queries and keys,
Dv the width of one head's values, D the width of a vector of the stage's level (`attention_proto/offers.py`), V the
labels of the model's head, C columns with names.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, TypeVar, get_args

Axis = Literal["H", "Hkv", "T", "S", "Dh", "Dv", "D", "V", "C"]
Level = Literal["site", "layer", "model"]
OptionName = Literal[
    "as",
    "heads",
    "rows",
    "reduce",
    "top_k",
    "data_type",
    "layers",
    "pool",
    "pairs",
    "top",
    "sample",
    "spans",
    "fold",
    "baseline",
]
Kind = Literal["string", "strings", "integer", "integers", "choice", "sample", "spans"]
Reduce = Literal["none", "mean", "max"]
Pool = Literal["none", "mean", "first", "last"]
Fold = Literal["none", "mean", "max", "rollout"]
DataType = Literal["FP32", "FP16"]

Choice = TypeVar("Choice", bound=str)

PREDICTIONS = "predictions"  # an output that is not a stage: the answers of the model's head
DEFAULT = "output"  # the stage that is returned where a request names none
PREDICTION_OPTIONS = frozenset({"rows", "top", "sample"})  # the options of predictions

STATISTICS = ("entropy", "previous", "self", "next", "first", "separators", "distance", "largest")

LINK_OPTIONS = frozenset({"as", "layers", "heads", "pairs", "rows"})  # the options of a stage of pairs of positions

_HEADS = frozenset({"H", "Hkv"})
_ROWS = frozenset({"T", "S"})


@dataclass(frozen=True)
class Stage:
    """A stage: its name, its axes and its source.

    Attributes:
        name: in a request.
        axes: of one sequence, outermost first; at most one of heads, then one of rows, then one of columns.
        words: its meaning, for documentation.
        level: a stage of a site (one attention), of a layer, or of the model.
        is_projected: whether it is a projection of query, key or value, and needs no attention.
        source: the stage that it is computed from after the graphs have run; empty where the graphs return it.
        is_listed: whether a layer gives it only where its manifest says so; it comes of the segment behind the site.
        is_links: whether it is sent as pairs of positions; each is chosen from a row of the source's mean over heads.
        is_of_head: whether the model's head computes it from rows of the last layer.
        sums_rows: whether it is one for all rows chosen, summed over rows of the source, and has no axis of rows.
        columns: the names of its columns, where these are no positions or widths.
    """

    name: str
    axes: tuple[Axis, ...]
    words: str
    level: Level = "site"
    is_projected: bool = False
    source: str = ""
    is_listed: bool = False
    is_links: bool = False
    is_of_head: bool = False
    sums_rows: bool = False
    columns: tuple[str, ...] = ()

    @cached_property
    def head_axis(self) -> Axis | None:
        """H or Hkv; None of a stage without heads."""
        return self.axes[0] if self.axes[0] in _HEADS else None

    @cached_property
    def row_axis(self) -> Axis:
        """T for query positions, S for key positions; of sums over rows the axis of the rows that are summed."""
        if self.sums_rows:
            return "T"
        return self.axes[1 if self.head_axis else 0]

    @cached_property
    def column_axis(self) -> Axis | None:
        """The last axis, behind the rows; None of a stage with one number a row."""
        return self.axes[-1] if self.axes[-1] != self.row_axis else None

    @cached_property
    def is_pairwise(self) -> bool:
        """Whether a row has one number for each key."""
        return self.row_axis == "T" and self.column_axis == "S"

    @cached_property
    def is_of_keys(self) -> bool:
        """Whether rows are key positions."""
        return self.row_axis == "S"

    @cached_property
    def computed(self) -> str:
        """The stage that a layer computes for it: its source where the output is shaped of that, else itself."""
        return self.source if self.is_links or self.sums_rows else self.name

    @cached_property
    def shape(self) -> str:
        """The axes in the notation of the documentation: `[H, T, Dh]`."""
        return f"[{', '.join(self.axes)}]"

    def takes(self, option: str) -> bool:
        """Return whether an option applies to this stage."""
        if option in ("top", "sample") or (self.is_links and option not in LINK_OPTIONS):
            return False
        if option in ("heads", "reduce", "pairs"):
            return self.head_axis is not None
        if option == "layers":
            return self.level != "model"
        if option == "pool":
            return not (self.is_of_head or self.sums_rows)
        if option in ("spans", "fold"):
            return self.is_pairwise and (self.name if option == "fold" else self.computed) == "weights"
        return option != "top_k" or self.is_pairwise


class Option(NamedTuple):
    """One option of an output.

    Attributes:
        name: in JSON and in the Open Inference Protocol.
        kind: its type.
        words: its meaning, for documentation.
        choices: of a `choice`, the default first.
        minimum: of an integer, or of each of several; None for any.
    """

    name: OptionName
    kind: Kind
    words: str
    choices: tuple[str, ...] = ()
    minimum: int | None = None

    @property
    def field(self) -> str:
        """The field of `OutputSpec`, in the contract and in Python, where `as` is a reserved word."""
        return "alias" if self.name == "as" else self.name


STAGES: Mapping[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "embeddings", ("T", "D"), "the vectors that go into the first layer, of a text or as sent", level="model"
        ),
        Stage("q", ("H", "T", "Dh"), "the projected queries", is_projected=True),
        Stage("k", ("Hkv", "S", "Dh"), "the projected keys", is_projected=True),
        Stage("v", ("Hkv", "S", "Dv"), "the projected values", is_projected=True),
        Stage("scores", ("H", "T", "S"), "q.k * scale, before the mask"),
        Stage("weights", ("H", "T", "S"), "softmax of the masked scores; zeros where a query may attend to no key"),
        Stage(
            "entropy",
            ("H", "T"),
            "the entropy of each row of weights in nats, 0 where a query may attend to no key",
            source="weights",
        ),
        Stage(
            "lse",
            ("H", "T"),
            "the log of the sum of exp of each row of masked scores; at least -1e30, which it is where a query may "
            "attend to no key",
            source="scores",
        ),
        Stage(
            "received",
            ("H", "S"),
            "the weights that each key receives, summed over the rows chosen",
            source="weights",
            sums_rows=True,
        ),
        Stage(
            "statistics",
            ("H", "C"),
            f"{len(STATISTICS)} means over the rows chosen that may attend to some key: `entropy`; the weights on the "
            "key at the `previous`, its own (`self`) and the `next` position, on the `first` key and on `separators`, "
            "the special tokens of a text; the `distance` of keys in tokens, by weight; the `largest` weight",
            source="weights",
            sums_rows=True,
            columns=STATISTICS,
        ),
        Stage(
            "alignment",
            ("H", "T"),
            "of a site over another sequence, for each row the key with the largest mean weight of the chosen heads; "
            "sent as pairs of positions and in Pharaoh's form",
            source="weights",
            is_links=True,
        ),
        Stage("heads", ("H", "T", "Dv"), "weights.v"),
        Stage(
            "contributions",
            ("H", "T", "D"),
            "each head's part of `output`: their sum and the bias of M_O are `output`",
            is_listed=True,
        ),
        Stage("output", ("T", "D"), "the heads combined by M_O", is_listed=True),
        Stage(
            "hidden",
            ("T", "D"),
            "the vectors behind a layer; behind the last layer the model's own output, after its final norm",
            level="layer",
            is_listed=True,
        ),
        Stage(
            "logits",
            ("T", "V"),
            "the numbers that the head gives each label, before the softmax",
            level="model",
            is_of_head=True,
        ),
    )
}
PAIRWISE = tuple(stage.name for stage in STAGES.values() if stage.is_pairwise)
PAIRWISE_WORDS = f"{', '.join(f'`{name}`' for name in PAIRWISE[:-1])} and `{PAIRWISE[-1]}`"
OF_KEYS = frozenset(stage.name for stage in STAGES.values() if stage.is_of_keys)
PROJECTED = frozenset(stage.name for stage in STAGES.values() if stage.is_projected)
LISTED = frozenset(stage.name for stage in STAGES.values() if stage.is_listed)
OUTPUTS = (*STAGES, PREDICTIONS)  # every name that an output can have

REDUCES: tuple[Reduce, ...] = get_args(Reduce)
POOLS: tuple[Pool, ...] = get_args(Pool)
FOLDS: tuple[Fold, ...] = get_args(Fold)
DATA_TYPES: tuple[DataType, ...] = get_args(DataType)

OPTIONS: Mapping[str, Option] = {
    option.name: option
    for option in (
        Option(
            "as",
            "string",
            "The name in the answer, up to 256 characters; the stage's name when empty. Names in one answer must "
            "differ.",
        ),
        Option(
            "heads", "integers", "The heads to return, in this order, without duplicates; all when empty.", minimum=0
        ),
        Option(
            "rows",
            "integers",
            "The query positions to return (key positions for `k` and `v`), in this order, without duplicates; all "
            f"when empty, and for `{PREDICTIONS}` those that the head reads. `received` and `statistics` are made of "
            "these rows. Negative positions count from the end: -1 is the last.",
        ),
        Option("reduce", "choice", "Reduces the chosen heads to one. The rank stays, with H = 1.", REDUCES),
        Option(
            "top_k",
            "integer",
            f"For {PAIRWISE_WORDS} only: returns the k largest numbers of each row, after reduction and pooling; 0 "
            "returns all.",
            minimum=0,
        ),
        Option("data_type", "choice", "The number format of the output: FP32 (default) or FP16.", DATA_TYPES),
        Option(
            "layers",
            "strings",
            "The layers, by their names in the manifest, or `*` for all that offer the stage; in a name, `*` stands "
            "for one part, as in `encoder.*` or `decoder.*.cross`. The last layer when empty. The outputs of more than "
            "one layer are named `NAME@LAYER`.",
        ),
        Option(
            "pool",
            "choice",
            "Reduces the chosen rows to one, after the reduction of heads. The shape loses the dimension of rows: "
            "`output` is [D], `heads` [H, Dv], `weights` [H, S]. Only unmasked rows count: query positions that may "
            "attend to some key in some head; for `k` and `v`, key positions that some query may attend to. A request "
            "is refused if every chosen row is masked.",
            POOLS,
        ),
        Option(
            "pairs",
            "strings",
            "Heads of several layers, as LAYER.HEAD, in place of `layers` and `heads`: one output with one head for "
            "each pair, in this order, such as `weights` [P, T, S], without duplicates.",
        ),
        Option(
            "top",
            "integer",
            f"For `{PREDICTIONS}` only: returns the most probable labels of each prediction, up to this number, each "
            "with its id and probability; 0 returns the most probable one alone.",
            minimum=0,
        ),
        Option(
            "sample",
            "sample",
            f"For `{PREDICTIONS}` only: draws the label of each prediction in place of the most probable one.",
        ),
        Option(
            "spans",
            "spans",
            "For `weights` and `received` only: ranges of keys with names, up to 1,024, in whose order the output has "
            "one column for each in place of one for each key: the weights of each head on the range, summed before "
            "the reduction of heads.",
        ),
        Option(
            "fold",
            "choice",
            "For `weights` only: reduces layers to one, after the reduction of heads, which is `mean` unless `reduce` "
            "says another; the shape loses the dimension of heads: [T, S]. `rollout` is the product over layers of "
            "(A + I) / 2 with rows that sum to 1, A the mean over all heads (Abnar and Zuidema 2020, "
            "arXiv:2005.00928), for self-attention without a kept prefix. `layers` need the same rows and keys; all "
            "layers with those of the last when empty.",
            FOLDS,
        ),
        Option(
            "baseline",
            "string",
            "The id of a memory as long as that of the sequence: the same output behind it is subtracted, so that what "
            "is left is owed to the content of the sequence's own memory. One memory a request; whole rows in FP32.",
        ),
    )
}


def numbers_of(choices: Iterable[Choice], values: Iterable[tuple[str, int]]) -> dict[Choice, int]:
    """Return the number of each choice in an enumeration of the contract; its unspecified value is `none`.

    Args:
        choices: of an option.
        values: the `items()` of the enumeration: (REDUCE_UNSPECIFIED, 0), ...
    """
    by_suffix = {name.partition("_")[2].lower(): number for name, number in values}
    return {choice: by_suffix["unspecified" if choice == "none" else choice] for choice in choices}
