"""The parts of a checkpoint: graphs between attentions, and each attention's own parameters."""

from collections.abc import Callable
from dataclasses import dataclass

from attention_proto.attention.v1.attention_pb2 import Side

Graph = Callable[[], bytes]
"""A serialised ONNX model, made at each call, so that no more than one segment's matrices are in memory."""


@dataclass(frozen=True)
class SiteSpec:
    """One attention of a model: softmax(softcap(q.k * scale) + bias, masked) . v; its sizes and its own mask.

    Attributes:
        name: short name, `3` or `decoder.3.cross`.
        path: of the module in the source, `encoder.layer.3.attention.self`; shared layers share it.
        heads: H.
        key_value_heads: Hkv, which divides H; head h reads key-value head h // (H / Hkv).
        head_dim: Dh, of queries and keys.
        value_head_dim: Dv.
        output_dim: width of `output`; 0 where it is not offered.
        scale: of q.k, before softcap, bias and masks.
        softcap: c in c * tanh(scores / c); 0 for none.
        causal: whether key j is seen by query i only if j <= i.
        window: w in |i - j| < w (causal: 0 <= i - j < w); 0 for none.
        sinks: [H], the score of one key more of each head, with a value of zeros; empty for none.
        bias: ONNX graph of `query_positions` [T], `key_positions` [S] (INT64) and, where it depends on rows,
            `q` [B,T,H*Dh] and `k` [B,S,Hkv*Dh], that gives `bias` [B or 1,H,T,S]; None for none.
        stages: of `output`, `contributions` and `hidden`, the ones that segments behind this site give.
        is_cross: whether queries are rows of the target, and keys are rows of the source.
    """

    name: str
    path: str
    heads: int
    key_value_heads: int
    head_dim: int
    value_head_dim: int
    output_dim: int
    scale: float
    softcap: float
    causal: bool
    window: int
    bias: bytes | None
    stages: tuple[str, ...]
    sinks: tuple[float, ...] = ()
    is_cross: bool = False


@dataclass(frozen=True)
class ChainParts:
    """The computation of one sequence, as front, segment 0, site 0, segment 1, .. site n-1, segment n.

    Graphs are connected by the names of inputs and outputs: `tokens`, `position_ids`, `token_type_ids` (INT64
    [B,T]), `query` [B,T,D], `q`, `k`, `v`, `heads`, `output`, `hidden` and `carry_0`, `carry_1`, .. ([B,T,width]). A
    result `next_carry_0` takes the place of `carry_0`: ONNX gives an input and a result no common name, and layers that
    share parameters are one file only if each takes and leaves its results under the same names.

    The last segment of an encoder gives `cross_k_0`, `cross_v_0`, `cross_k_1`, .. too, k and v of the cross sites in
    order; the segment before a cross site gives `q` alone.

    Attributes:
        side: SIDE_SOURCE of an encoder that a decoder attends to, else SIDE_TARGET.
        front: tokens [, position_ids, token_type_ids] -> query, hidden state 0 of the source.
        segments: n + 1 graphs; segment k runs before site k. Equal segments serialise to equal bytes.
        rows_dependent: for each segment, whether a row of a result depends on further rows.
        front_rows_dependent: the same of the front.
        sites: in the order of computation.
        query_dim: width of `query`.
        hidden_dim: width of `hidden`.
        takes_token_types: whether the front reads `token_type_ids`.
        vocabulary_size: the number of tokens that the front has vectors for.
    """

    side: "Side.ValueType"
    front: Graph
    segments: tuple[Graph, ...]
    rows_dependent: tuple[bool, ...]
    front_rows_dependent: bool
    sites: tuple[SiteSpec, ...]
    query_dim: int
    hidden_dim: int
    takes_token_types: bool
    vocabulary_size: int


@dataclass(frozen=True)
class TransformerParts:
    """A model as chains and head.

    Attributes:
        architecture: class of the source, `BertModel`.
        chains: one; in an encoder-decoder two, the encoder's first.
        position_base: position of the first token.
        max_tokens: longest sequence that the source has positions for; 0 for any.
        start_token: that a decoder's sequences begin with; None in a model of one sequence.
        end_tokens: that end a sequence which is predicted token by token; empty where no file says them.
        head: hidden [N,D] -> logits [N,labels]; None for a base model.
        notes: sentences on tensors and heads that are left out.
    """

    architecture: str
    chains: tuple[ChainParts, ...]
    position_base: int
    max_tokens: int
    start_token: int | None
    end_tokens: tuple[int, ...]
    head: Graph | None
    notes: tuple[str, ...]

    @property
    def site_count(self) -> int:
        """The number of sites of all chains."""
        return sum(len(chain.sites) for chain in self.chains)

    @property
    def target(self) -> ChainParts:
        """The chain of the one sequence, or of the decoder's."""
        return self.chains[-1]

    @property
    def source(self) -> ChainParts | None:
        """The chain of the encoder's sequence; None in a model of one sequence."""
        return self.chains[0] if len(self.chains) > 1 else None
