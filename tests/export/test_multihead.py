"""`import multihead`: any `nn.MultiheadAttention` is served as PyTorch computes it, or refused in words."""

import functools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from attention_client import AttentionClient, OutputSpec
from attention_export.cli import app
from attention_export.importing import ImportFailure, read_tensors
from attention_export.importing.multihead import import_multihead
from attention_export.manifest import read_block, read_manifest
from click.testing import Result
from serving import start_server
from torch import Tensor, nn
from typer.testing import CliRunner


def attention(width: int = 24, heads: int = 4, **options: object) -> nn.MultiheadAttention:
    """Make an attention in float64 with weights and biases that all matter."""
    torch.manual_seed(3)
    made = nn.MultiheadAttention(width, heads, batch_first=True, **options).double().eval()  # type: ignore[arg-type]
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def compute(theirs: nn.MultiheadAttention, *inputs: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return its output and the weights of each head."""
    with torch.no_grad():
        found: tuple[Tensor, Tensor] = theirs(*inputs, attn_mask=mask, need_weights=True, average_attn_weights=False)
    return found


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.mark.parametrize("add_zero_attn", [False, True])
@pytest.mark.parametrize(
    ("kdim", "vdim", "bias"), [(None, None, True), (None, None, False), (10, 14, True), (10, 14, False)]
)
def test_multihead_attention_of_torch_is_the_same_block(
    kdim: int | None, vdim: int | None, bias: bool, add_zero_attn: bool, tmp_path: Path
) -> None:
    """A block of `nn.MultiheadAttention`, packed or separate, with or without bias, computes the same as PyTorch.

    With `add_zero_attn`, PyTorch's weights have one column more, for the zero key; the block's leave it out.
    """
    theirs = attention(bias=bias, kdim=kdim, vdim=vdim, add_zero_attn=add_zero_attn)
    path = tmp_path / "weights.pt"
    torch.save(theirs.state_dict(), path)
    block = import_multihead(read_tensors(path), 4, cross=kdim is not None, zero_key=add_zero_attn).double()
    arrays = [torch.randn(2, *shape).double() for shape in ((5, 24), (7, kdim or 24), (7, vdim or 24))]
    hidden_row = torch.zeros(5, 7).double()
    hidden_row[2], hidden_row[3, :4] = -math.inf, 0.7
    for mask in (None, torch.full((5, 7), -math.inf).double().triu(1), *([hidden_row] if add_zero_attn else [])):
        output, weights = compute(theirs, *arrays, mask=mask)
        stages = block(*arrays, mask=mask)
        torch.testing.assert_close(stages.output, output, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(stages.weights, weights[..., :7], atol=1e-6, rtol=1e-5)


@pytest.mark.usefixtures("few_lengths")
def test_a_zero_key_is_served_by_every_graph(tmp_path: Path) -> None:
    """Imported with `--add-zero-attn`, weights, masks, pooling and kept keys are PyTorch's, over the wire."""
    theirs = attention(add_zero_attn=True)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    options = ("--heads", 4, "--add-zero-attn", "--cross", "--models", tmp_path / "models")
    made = invoke("import", "multihead", tmp_path / "theirs.pt", "--name", "zero", *options)
    assert made.exit_code == 0, made.stderr
    folder = tmp_path / "models/zero/1"
    manifest = read_manifest(folder)
    assert read_block(folder, manifest, manifest.layers[0]).zero_key  # so that `verify` compares with the same block

    x, causal = torch.randn(1, 40, 24).double(), torch.full((40, 40), -math.inf).double().triu(1)
    query = x[0].numpy().astype(np.float32)
    with start_server(tmp_path / "models") as server, AttentionClient(server.grpc) as client:
        ask = functools.partial(client.attend, "zero", query=query)
        for mask, added in (("none", None), ("top_left", causal)):
            output, weights = (each[0].numpy() for each in compute(theirs, x, x, x, mask=added))
            found = ask(key=query, causal=mask, outputs=["weights", "output"])
            np.testing.assert_allclose(found.weights, weights[..., :40], atol=1e-5)
            np.testing.assert_allclose(found.output, output, atol=1e-5)
            assert (found.weights.sum(-1) < 1).all()
            mean = ask(key=query, causal=mask, outputs=[OutputSpec("output", pool="mean")])
            np.testing.assert_allclose(mean.output, output.mean(0), atol=1e-5)
        kept = ask(memory=client.create_memory("zero", key=query), outputs=["weights"])
        _, weights = compute(theirs, x, x, x)
        np.testing.assert_allclose(kept.weights, weights[0, ..., :40].numpy(), atol=1e-5)


@pytest.mark.usefixtures("few_graphs")
def test_an_attention_inside_another_module_is_found_by_its_prefix(tmp_path: Path) -> None:
    """`--prefix` imports an attention of an encoder layer; without it, or with another, the prefixes are named."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16).eval()
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    options = ("--name", "inner", "--heads", 2, "--models", tmp_path / "models")
    for wrong, where in (((), "at the root of the names"), (("--prefix", "attn."), "at the prefix 'attn.'")):
        refused = invoke("import", "multihead", tmp_path / "layer.pt", *options, *wrong)
        assert refused.exit_code == 1
        assert f"no nn.MultiheadAttention stands {where}; give --prefix, one of 'self_attn.'\n" in refused.stderr
    made = invoke("import", "multihead", tmp_path / "layer.pt", "--prefix", "self_attn.", *options)
    assert made.exit_code == 0, made.stderr
    assert read_manifest(tmp_path / "models/inner/1").source == "layer.pt, self_attn."
    stages = import_multihead(layer.state_dict(), 2, prefix="self_attn.")(x := torch.randn(2, 5, 8))
    theirs = layer.self_attn(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1)
    torch.testing.assert_close(stages.output, theirs)


def test_every_prefix_of_a_nested_module_is_named() -> None:
    """All 18 attentions of `nn.Transformer` are named, with separate projections as well; of more, the number."""
    names = nn.Transformer(8, 2, dim_feedforward=8, batch_first=True).state_dict()
    with pytest.raises(ImportFailure) as refused:
        import_multihead(names, 2)
    for index in range(6):
        for prefix in (f"encoder.layers.{index}.self_attn.", f"decoder.layers.{index}.multihead_attn."):
            assert f"'{prefix}'" in str(refused.value)
    many = nn.ModuleList(nn.MultiheadAttention(8, 2, kdim=4) for _ in range(30)).state_dict()
    with pytest.raises(ImportFailure, match=r"'0\.', '1\.', .* and 6 more$"):
        import_multihead(many, 2)
    with pytest.raises(ImportFailure, match=r"no nn\.MultiheadAttention stands at the prefix 'x\.', nor at any other"):
        import_multihead({"x.weight": torch.zeros(3)}, 2, prefix="x.")


def test_an_attention_that_is_not_whole_is_refused() -> None:
    """Missing tensors and learned extra keys are errors with the tensor's name."""
    with pytest.raises(ImportFailure, match=r"bias_k"):
        import_multihead(nn.MultiheadAttention(12, 2, add_bias_kv=True).state_dict(), 2)
    with pytest.raises(ImportFailure, match=r"out_proj\.weight"):
        import_multihead({"in_proj_weight": torch.zeros(36, 12)}, 2)
