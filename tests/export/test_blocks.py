"""The blocks compute the article's formulas, and agree with PyTorch's own attention."""

import math

import pytest
import torch
from attention_export.blocks import BLOCKS, CrossAttention, Dims, DotProduct, MultiHead, SelfAttention, join
from torch.nn.functional import scaled_dot_product_attention

torch.manual_seed(0)
QUERY, KEY, VALUE = torch.randn(2, 5, 12), torch.randn(2, 7, 12), torch.randn(2, 7, 9)


def test_dot_product_is_the_articles_arithmetic() -> None:
    """s_ij = v_i . v_j; w = softmax(s); y_i = sum_j w_ij v_j, on the raw embeddings."""
    stages = DotProduct()(QUERY)
    for i in range(5):
        scores = torch.stack([QUERY[0, i] @ QUERY[0, j] for j in range(5)])
        weights = torch.exp(scores) / torch.exp(scores).sum()
        expected = sum(weights[j] * QUERY[0, j] for j in range(5))
        torch.testing.assert_close(stages.weights[0, 0, i], weights)
        torch.testing.assert_close(stages.output[0, i], expected)


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("bias", [True, False])
def test_heads_are_torchs_scaled_dot_product_attention(heads: int, bias: bool) -> None:
    """For any number of heads, with or without bias, each head equals PyTorch's attention of its projections."""
    block = MultiHead(Dims(query=12, heads=heads), bias=bias)
    stages = block(QUERY, KEY)
    expected = scaled_dot_product_attention(stages.q, stages.k, stages.v)
    torch.testing.assert_close(stages.heads, expected)
    torch.testing.assert_close(stages.output, join(expected) @ block.M_O + (block.b_O if bias else 0))
    assert len(list(block.parameters())) == (8 if bias else 4)


def test_widths_of_their_own() -> None:
    """Query, key, value, head, value head and output may have six different widths."""
    dims = Dims(query=12, key=12, value=9, heads=4, head=5, value_head=2, output=11)
    stages = CrossAttention(dims)(QUERY, KEY, VALUE)
    shapes = [tuple(stage.shape) for stage in stages]
    assert shapes == [(2, 4, 5, 5), (2, 4, 7, 5), (2, 4, 7, 2), (2, 4, 5, 7), (2, 4, 5, 7), (2, 4, 5, 2), (2, 5, 11)]


def test_self_attention_has_no_m_o() -> None:
    """`self_attention` has Q, K and V alone: the output is `heads`, and scores are scaled by 1 / sqrt(Dh)."""
    block = SelfAttention(Dims(query=12))
    stages = block(QUERY)
    torch.testing.assert_close(stages.output, join(stages.heads))
    torch.testing.assert_close(stages.scores, stages.q @ stages.k.transpose(-1, -2) / math.sqrt(12))


@pytest.mark.parametrize("name", BLOCKS)
def test_a_fully_masked_row_gives_zeros(name: str) -> None:
    """Weights and heads of a fully masked row are zero, not NaN; the output is the bias; gradients are finite."""
    block = BLOCKS[name]() if name == "dot_product" else BLOCKS[name](Dims(query=12, heads=2))
    query = QUERY.clone().requires_grad_()
    mask = torch.zeros(5, 7)
    mask[2] = -math.inf
    stages = block(query, KEY, None, mask)
    assert not stages.weights[:, :, 2].any()
    assert not stages.heads[:, :, 2].any()
    bias = getattr(block, "b_O", None)
    torch.testing.assert_close(stages.output[:, 2], torch.zeros(2, 12) if bias is None else bias.expand(2, -1))
    stages.output.sum().backward()
    assert query.grad is not None and query.grad.isfinite().all()
    rest = [0, 1, 3, 4]
    torch.testing.assert_close(stages.weights[:, :, rest].sum(-1), torch.ones(2, block.dims.heads, 4))


def test_grouped_queries_share_keys() -> None:
    """The q heads of a group share k and v, as in PyTorch's grouped-query attention."""
    block = DotProduct(Dims(query=12, key=6, value=4, heads=4, key_value_heads=2), scale=0.3)
    stages = block(QUERY, KEY[..., :6], VALUE[..., :4])
    expected = scaled_dot_product_attention(stages.q, stages.k, stages.v, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(stages.heads, expected)


def test_softcap_bounds_the_scores() -> None:
    """Scores are bounded by tanh before the mask and the softmax."""
    plain, capped = DotProduct()(QUERY), DotProduct(softcap=2.0)(QUERY)
    torch.testing.assert_close(capped.scores, 2 * torch.tanh(plain.scores / 2))
    torch.testing.assert_close(capped.weights, capped.scores.softmax(-1))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Dims(query=12, heads=5), "does not divide"),
        (lambda: Dims(query=-1), "negative"),
        (lambda: Dims(query=12, heads=0), "at least 1"),
        (lambda: Dims(query=12, heads=4, key_value_heads=3), "does not divide"),
        (lambda: DotProduct(Dims(heads=2)), "widths"),
        (lambda: MultiHead(Dims(query=12, heads=4, key_value_heads=2)), "key_value_heads"),
        (lambda: CrossAttention(Dims(query=12))(QUERY), "needs a key"),
    ],
)
def test_an_invalid_block_is_refused(make, words: str) -> None:
    """Inconsistent widths and a cross-attention without a key raise an error that names the problem."""
    with pytest.raises(ValueError, match=words):
        make()
