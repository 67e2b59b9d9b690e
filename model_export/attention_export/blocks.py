"""The four attention blocks, from plain arithmetic to trained heads.

    scores_ij = q_i . k_j        how well query i and key j match
    weights   = softmax(scores)  each query's attention, a row that sums to 1
    y_i       = sum_j weights_ij v_j

(scaled dot-product attention; Vaswani et al., "Attention Is All You Need", 2017). Shapes in comments: B sequences, T
query positions, S key positions, H heads, Dh and Dv the widths of a head's keys and values.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


class Stages(NamedTuple):
    """The stages from query to output: softmax(mask(scores)) = weights, weights.v = heads, heads.M_O = output."""

    q: Tensor  # (B, H, T, Dh)
    k: Tensor  # (B, Hkv, S, Dh)
    v: Tensor  # (B, Hkv, S, Dv)
    scores: Tensor  # (B, H, T, S), scaled, before the mask
    weights: Tensor  # (B, H, T, S)
    heads: Tensor  # (B, H, T, Dv)
    output: Tensor  # (B, T, D)


@dataclass(frozen=True)
class Dims:
    """The widths of a block. Defaults for 0: key = query, value = key, head = query / heads, output = query.

    Attributes:
        query, key, value: the widths of the input vectors. In `dot_product`, 0 is any width.
        heads: H.
        head: Dh, the width of one head's queries and keys.
        value_head: Dv, the width of one head's values; 0 is Dh.
        output: D, for blocks with M_O.
        key_value_heads: heads of k and v, each shared by heads / key_value_heads of q; 0 is H. `dot_product` only.

    Raises:
        ValueError: a width is negative, or `heads` does not divide the width that it splits.
    """

    query: int = 0
    key: int = 0
    value: int = 0
    heads: int = 1
    head: int = 0
    value_head: int = 0
    output: int = 0
    key_value_heads: int = 0

    def __post_init__(self) -> None:
        widths = (self.query, self.key, self.value, self.head, self.value_head, self.output, self.key_value_heads)
        if self.heads < 1 or min(widths) < 0:
            raise ValueError(f"widths must not be negative and heads must be at least 1, not {self}")
        if not self.head and self.query % self.heads:
            raise ValueError(f"heads={self.heads} does not divide the query width {self.query}; give `head`")
        if self.heads % (self.key_value_heads or self.heads):
            raise ValueError(f"key_value_heads={self.key_value_heads} does not divide heads={self.heads}")

    def resolved(self) -> "Dims":
        """Return the same widths with every 0 replaced by its default."""
        key = self.key or self.query
        head = self.head or self.query // self.heads
        return Dims(
            query=self.query,
            key=key,
            value=self.value or key,
            heads=self.heads,
            head=head,
            value_head=self.value_head or head,
            output=self.output or self.query,
            key_value_heads=self.key_value_heads or self.heads,
        )


def split(x: Tensor, heads: int) -> Tensor:
    """(B, T, H * Dh) -> (B, H, T, Dh)."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads).transpose(-3, -2)


def join(x: Tensor) -> Tensor:
    """(B, H, T, Dv) -> (B, T, H * Dv)."""
    return x.transpose(-3, -2).flatten(-2)


def softmax(scores: Tensor, mask: Tensor | None, *, zero_key: bool = False) -> Tensor:
    """Turn scores into weights, (B, H, T, S); a row that is masked whole gives zeros, not NaN.

    Args:
        scores: (B, H, T, S).
        mask: added to the scores, -inf where a key is hidden; broadcastable to (B, H, T, S).
        zero_key: whether there is one key more, with the score 0. Its column is left out of the weights.
    """
    if zero_key:
        masks = None if mask is None else pad(mask, (0, 1))
        return softmax(pad(scores, (0, 1)), masks)[..., :-1]
    if mask is None:
        return scores.softmax(-1)
    attends = (mask > -math.inf).any(-1, keepdim=True)  # (.., T, 1)
    return torch.where(attends, scores + mask, 0.0).softmax(-1) * attends


class DotProduct(nn.Module):
    """Attention on the raw vectors, without parameters: q = query, k = key, v = value; scores are not scaled."""

    name = "dot_product"
    zero_key: bool = False  # whether there is one key more, of zeros, with a value of zeros; set by importers

    def __init__(self, dims: Dims | None = None, *, scale: float = 1.0, softcap: float = 0.0) -> None:
        super().__init__()
        self.dims = dims or Dims()
        if self.dims.heads > 1 and not (self.dims.query and self.dims.key and self.dims.value):
            raise ValueError("a block of several heads needs the widths of query, key and value")
        self.scale = scale
        self.softcap = softcap

    def project(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, Dk), (B, S, Dv) -> k, v, heads side by side."""
        return key, value

    def queries(self, query: Tensor) -> Tensor:
        """(B, T, Dq) -> q, heads side by side."""
        return query

    def combine(self, heads: Tensor) -> Tensor:
        """(B, T, H * Dv) -> (B, T, D)."""
        return heads

    def forward(
        self, query: Tensor, key: Tensor | None = None, value: Tensor | None = None, mask: Tensor | None = None
    ) -> Stages:
        """Attend from each position of `query` over `key` and `value`.

        Args:
            query: (B, T, Dq).
            key: (B, S, Dk); the query when absent.
            value: (B, S, Dv); the key when absent.
            mask: added to the scores, -inf where a key is hidden; broadcastable to (B, H, T, S).
        """
        key = query if key is None else key
        value = key if value is None else value
        k, v = self.project(key, value)
        shared = self.dims.key_value_heads or self.dims.heads
        q, k, v = split(self.queries(query), self.dims.heads), split(k, shared), split(v, shared)
        return self.attend(q, k, v, mask)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Stages:
        """Dot product, normalise, weighted sum, combine."""
        scores = self.compare(q, k)
        weights = softmax(scores, mask, zero_key=self.zero_key)  # (B, H, T, S)
        heads = weights @ self._shared(v)  # (B, H, T, Dv)
        return Stages(q, k, v, scores, weights, heads, self.combine(join(heads)))

    def compare(self, q: Tensor, k: Tensor) -> Tensor:
        """(B, H, T, Dh), (B, Hkv, S, Dh) -> scores, (B, H, T, S)."""
        scores = q @ self._shared(k).transpose(-2, -1) * self.scale
        return self.softcap * torch.tanh(scores / self.softcap) if self.softcap else scores

    def _shared(self, x: Tensor) -> Tensor:
        """(B, Hkv, S, D) -> (B, H, S, D): in grouped-query attention several heads of q read the same k and v."""
        group = self.dims.heads // (self.dims.key_value_heads or self.dims.heads)
        return x if group == 1 else x.repeat_interleave(group, 1)


class SelfAttention(DotProduct):
    """Attention with trained comparisons: q = query.M_Q, k = key.M_K, v = value.M_V, scores scaled by 1 / sqrt(Dh).

    The matrices are [in, out], heads side by side in the columns, so that code and article read alike: v . M_Q.
    """

    name = "self_attention"

    def __init__(self, dims: Dims, *, bias: bool = True, scale: float = 0.0, softcap: float = 0.0) -> None:
        d = dims.resolved()
        if d.key_value_heads != d.heads:
            raise ValueError("key_value_heads is for dot_product, whose keys come projected")
        super().__init__(d, scale=scale or d.head**-0.5, softcap=softcap)
        self.M_Q, self.b_Q = _matrix(d.query, d.heads * d.head, bias=bias)
        self.M_K, self.b_K = _matrix(d.key, d.heads * d.head, bias=bias)
        self.M_V, self.b_V = _matrix(d.value, d.heads * d.value_head, bias=bias)

    def project(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return _affine(key, self.M_K, self.b_K), _affine(value, self.M_V, self.b_V)

    def queries(self, query: Tensor) -> Tensor:
        return _affine(query, self.M_Q, self.b_Q)

    def pool(self, query: Tensor, key: Tensor, value: Tensor, pool: Tensor) -> Tensor:
        """Average rows of the output without computing them: (B, P, D).

        Row t is (w_t X M_V + b_V) M_O + b_O, with the weights w_t and the unprojected values X. The mean with the
        coefficients p is ((p w) X M_V + b_V) M_O + b_O, since p and each w_t sum to 1. So P rows are projected instead
        of S, and P combined instead of T: a self-attention needs half of its products. With a zero key the sums are
        below 1, so this does not hold.

        Args:
            query: (B, T, Dq).
            key: (B, S, Dk).
            value: (B, S, Dv).
            pool: the coefficient of each row in each mean, (P, T); each sums to 1.
        """
        heads = self.dims.heads
        # q.b_K is the same for every key, so it cancels in the softmax over keys; it does not under a softcap.
        k = key @ self.M_K if not self.softcap else _affine(key, self.M_K, self.b_K)
        q, k = split(self.queries(query), heads), split(k, heads)
        weights = pool @ self.compare(q, k).softmax(-1)  # (B, H, P, S)
        pooled = join(weights @ value.unsqueeze(1) @ split(self.M_V, heads))  # (B, P, H * Dv)
        return self.combine(pooled if self.b_V is None else pooled + self.b_V)


class MultiHead(SelfAttention):
    """Several self-attentions in parallel, one for each head, combined by M_O."""

    name = "multi_head"

    def __init__(self, dims: Dims, *, bias: bool = True, scale: float = 0.0, softcap: float = 0.0) -> None:
        super().__init__(dims, bias=bias, scale=scale, softcap=softcap)
        self.M_O, self.b_O = _matrix(self.dims.heads * self.dims.value_head, self.dims.output, bias=bias)

    def combine(self, heads: Tensor) -> Tensor:
        return _affine(heads, self.M_O, self.b_O)


class CrossAttention(MultiHead):
    """Multi-head attention over keys and values of another sequence, the memory."""

    name = "cross_attention"

    def forward(
        self, query: Tensor, key: Tensor | None = None, value: Tensor | None = None, mask: Tensor | None = None
    ) -> Stages:
        if key is None:
            raise ValueError("cross_attention needs a key: the memory that the query attends to")
        return super().forward(query, key, value, mask)


BLOCKS: dict[str, type[DotProduct]] = {
    block.name: block for block in (DotProduct, SelfAttention, MultiHead, CrossAttention)
}


def _matrix(rows: int, columns: int, *, bias: bool) -> tuple[nn.Parameter, nn.Parameter | None]:
    """Glorot-uniform weights (Glorot & Bengio, 2010) and a zero bias."""
    matrix = nn.Parameter(nn.init.xavier_uniform_(torch.empty(rows, columns)))
    return matrix, nn.Parameter(torch.zeros(columns)) if bias else None


def _affine(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    return x @ matrix if bias is None else x @ matrix + bias
