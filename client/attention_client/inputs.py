"""The inputs of a request: sequences, and the outputs to send back."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.masks import Causal
from attention_proto.text import Truncate
from numpy.typing import ArrayLike

from attention_client.keywords import suggests_keywords
from attention_client.memory import Memory
from attention_client.result import Ablation


@suggests_keywords
@dataclass(frozen=True, kw_only=True, eq=False)
class Sequence:
    """One sequence, and the memory that it attends to.

    One of `query`, `text` and `token_ids`; at most one of `key`, `memory_text`, `memory_token_ids` and `memory`, but
    that `key` may stand beside `memory` in a `dot_product` model: the memory's keys come before.

    Numbers are sent as float32, or as float16 where the array is float16.

    Attributes:
        query: [T, query width].
        key: [S, key width]; the query when absent, but for a cross-attention model, which needs a memory.
        value: [S, value width]; the key when absent.
        text: the query as text, for a text model.
        memory_text: the memory as text, for a text model that attends to a second sequence.
        token_ids: the query as ids of tokens, integers [T], taken unchanged, in place of `text`.
        memory_token_ids: the memory as ids of tokens, integers [S], taken unchanged, in place of `memory_text`.
        text_pair: the second text of a pair, of which `text` is the first, for a model that takes pairs.
        truncate: the end at which tokens of `text` and `memory_text` are dropped that are more than the model reads;
            `none` has such a text refused.
        memory: a memory that the server keeps, as `create_memory` returned it, or its id.
        extend: whether the sequence's own keys and values are kept behind those of the memory, which stays as it is:
            `memory` of the result is a new one of both. For decoders, and for targets over a kept source.
        causal: hides the future; positions are lined up at the first or the last of query and key.
        window: (left, right), the farthest keys a query may attend to, inclusive; -1 is unbounded.
        allowed: bool, broadcastable to [H, T, S]; true = may attend.
        bias: broadcastable to [H, T, S], added to the scores; -inf hides a key.
        mask_layers: the layers that these four are for, by the names that outputs take; all when empty.
    """

    query: ArrayLike | None = None
    key: ArrayLike | None = None
    value: ArrayLike | None = None
    text: str | None = None
    memory_text: str | None = None
    token_ids: ArrayLike | None = None
    memory_token_ids: ArrayLike | None = None
    text_pair: str | None = None
    truncate: Truncate = "none"
    memory: Memory | str | None = None
    extend: bool = False
    causal: Causal = "none"
    window: tuple[int, int] | None = None
    allowed: ArrayLike | None = None
    bias: ArrayLike | None = None
    mask_layers: Iterable[str] = ()


@suggests_keywords
@dataclass(frozen=True)
class Sample:
    """The draw of a prediction's label: logits / temperature, of which the largest are kept.

    Attributes:
        temperature: above 0; 1 when None.
        top_k: the number of labels that are kept, ties with the last one too; 0 keeps all.
        top_p: the least sum of the probabilities that are kept, of the most probable labels; 1 when None.
        seed: from 0 to 2**64 - 1; equal sequences have equal draws for one seed. Each draw is a new one when None.
    """

    temperature: float | None = None
    top_k: int = 0
    top_p: float | None = None
    seed: int | None = None


@suggests_keywords
@dataclass(frozen=True)
class OutputSpec:
    """One output to send back; in a request's `outputs` a name alone, or a dict of these fields, does as well.

    Attributes:
        name: a stage of `attention_proto.stages.STAGES`, or `predictions`.
        alias: the name in the result, the stage's when empty. A dict may say `as`.
        heads: which heads, in this order; all when empty.
        rows: which query positions (key positions for `k` and `v`), in this order; all when empty, and of
            `predictions` those that the head reads; -1 is the last.
        reduce: makes the heads one, by mean or maximum; the rank stays.
        top_k: `weights` and `scores` only: the k largest of each row, as a `TopK`; 0 sends all.
        data_type: of the numbers sent.
        layers: which layers of a model that has several; the last when empty. `*` stands for all that have the stage.
        pool: makes the rows one: the mean of the chosen rows, or the first or last; `output` becomes [D], `heads`
            [H, Dv], `weights` [H, S]. Only rows that the mask leaves count: query positions that may attend to some
            key; of `k` and `v` key positions that some query may attend to. The top k are taken of the pooled rows.
        pairs: heads of several layers, as `LAYER.HEAD`, in place of `layers` and `heads`: one output with one head for
            each pair, in this order.
        top: `predictions` only: the number of most probable labels to return for each prediction.
        sample: `predictions` only: draws the label in place of the most probable one. A dict of its fields does as
            well.
        spans: `weights` and `received` only: ranges of keys by name, `(begin, end)`, or a dict of these and of
            `characters`, whether these count characters of the text; the output has one column for each, the weights
            of each head summed over it.
        fold: `weights` only: makes the layers one, [T, S], of all layers when `layers` is empty: their mean or maximum,
            after the reduction of heads (`mean` when None), or the attention rollout, for self-attention without a
            kept prefix.
        baseline: a memory as long as that of the sequence: the same output behind it is subtracted. It is not created
            again when the server no longer has it.
    """

    name: str
    alias: str = ""
    heads: Iterable[int] = ()
    rows: Iterable[int] = ()
    reduce: Literal["mean", "max"] | None = None
    top_k: int = 0
    data_type: Literal["FP32", "FP16"] = "FP32"
    layers: Iterable[str] = ()
    pool: Literal["mean", "first", "last"] | None = None
    pairs: Iterable[str] = ()
    top: int = 0
    sample: Sample | Mapping[str, Any] | None = None
    spans: Mapping[str, tuple[int, int] | Mapping[str, Any]] = field(default_factory=dict)
    fold: Literal["mean", "max", "rollout"] | None = None
    baseline: Memory | str = ""


Item = Sequence | str | ArrayLike
"""A sequence as callers give it: a `Sequence`, a text, or a query [T, query width]."""

Output = str | OutputSpec | Mapping[str, Any] | pb.OutputSpec


class StreamOptions(TypedDict, total=False):
    """The options of `attend_many` that all of its forms have; described at the method."""

    outputs: Iterable[Output]
    version: int
    token_offsets: bool
    ablate: Iterable[Ablation | Mapping[str, Any]]
    score_temperature: float | None
    timeout: float | None
