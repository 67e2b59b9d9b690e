"""Versions of random architectures of a small grammar are equal to their sources."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from attention_export.importing import ImportFailure
from attention_export.importing.transformer import import_transformer
from attention_export.importing.transformer.reference import EagerModel, Reference
from attention_export.importing.transformer.runner import Tokens, VersionRunner
from attention_export.importing.transformer.structure import site_reference, site_weights
from export.tiny_checkpoints import WORDS, tiny_model, widened, word_tokenizer
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

WIDTH, HEAD = 24, 6
EPSILON = 1e-5


@dataclass(frozen=True)
class Grammar:
    """One architecture of the grammar."""

    heads: int
    key_value_heads: int
    rotary: bool
    window: int
    softcap: float
    causal: bool
    norm_first: bool


class GrammarConfig(PretrainedConfig):
    """The config of a random architecture: the fields of `Grammar`."""

    model_type = "grammar-encoder"

    def __init__(self, **kwargs: Any) -> None:
        self.grammar = kwargs.pop("grammar", vars(Grammar(4, 2, True, 4, 5.0, False, True)))
        super().__init__(**kwargs)
        self.vocab_size, self.hidden_size, self.max_position_embeddings, self.type_vocab_size = WORDS, WIDTH, 32, 2


class GrammarAttention(nn.Module):
    def __init__(self, config: GrammarConfig) -> None:
        super().__init__()
        self.config, self.grammar = config, Grammar(**config.grammar)
        self.is_causal = self.grammar.causal
        self.q_proj = nn.Linear(WIDTH, self.grammar.heads * HEAD)
        self.k_proj = nn.Linear(WIDTH, self.grammar.key_value_heads * HEAD)
        self.v_proj = nn.Linear(WIDTH, self.grammar.key_value_heads * HEAD)
        self.o_proj = nn.Linear(self.grammar.heads * HEAD, WIDTH)

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        q, k, v = (p(x).view(*x.shape[:2], -1, HEAD).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if self.grammar.rotary:
            q, k = rotate(q, positions), rotate(k, positions)
        interface: Any = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, written_out)
        options = {"softcap": self.grammar.softcap or None, "sliding_window": self.grammar.window or None}
        heads, weights = interface(self, q, k, v, None, scaling=0.4, **options)
        return self.o_proj(heads.reshape(*x.shape[:2], -1)), weights


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    angles = positions[:, None, :, None] * torch.tensor([1.0, 0.1, 0.01])
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def written_out(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, _: Tensor | None, scaling: float, **options: Any
) -> tuple[Tensor, Tensor]:
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * scaling
    if options["softcap"]:
        scores = options["softcap"] * torch.tanh(scores / options["softcap"])
    distance = torch.arange(q.shape[2])[:, None] - torch.arange(k.shape[2])
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    if module.is_causal:
        hidden |= distance < 0
    if options["sliding_window"]:
        hidden |= distance.abs() >= options["sliding_window"]
    weights = torch.softmax(scores.masked_fill(hidden, -torch.inf), -1)
    return (weights @ v).transpose(1, 2), weights


class GrammarLayer(nn.Module):
    def __init__(self, config: GrammarConfig) -> None:
        super().__init__()
        self.attention = GrammarAttention(config)
        self.norm, self.second_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)
        self.first = self.attention.grammar.norm_first

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        output, weights = self.attention(self.norm(x) if self.first else x, positions)
        x = x + output if self.first else self.norm(x + output)
        wide = torch.nn.functional.gelu(self.wide(self.second_norm(x) if self.first else x))
        x = x + self.narrow(wide) if self.first else self.second_norm(x + self.narrow(wide))
        return x, weights


class GrammarModel(PreTrainedModel):
    """An encoder of two layers, by the grammar of its config."""

    config_class = GrammarConfig
    base_model_prefix = "grammar"
    _supports_attention_backend = True

    def __init__(self, config: GrammarConfig) -> None:
        super().__init__(config)
        self.word_embed, self.type_embed = nn.Embedding(WORDS, WIDTH), nn.Embedding(2, WIDTH)
        self.position_embed = None if Grammar(**config.grammar).rotary else nn.Embedding(32, WIDTH)
        self.layers = nn.ModuleList(GrammarLayer(config) for _ in range(2))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.word_embed

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        **_: Any,
    ) -> BaseModelOutput:
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1]).expand(input_ids.shape)
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        x = self.word_embed(input_ids) + self.type_embed(types)
        if self.position_embed is not None:
            x = x + self.position_embed(position_ids)
        states, attentions = [x], []
        for layer in self.layers:
            x, weights = layer(x, position_ids)
            states.append(x)
            attentions.append(weights)
        return BaseModelOutput(
            last_hidden_state=x,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )


AutoConfig.register("grammar-encoder", GrammarConfig)
AutoModel.register(GrammarConfig, GrammarModel)


GRAMMARS = st.builds(
    lambda groups, shared, **rest: Grammar(groups * shared, shared, **rest),
    groups=st.sampled_from([1, 2]),
    shared=st.sampled_from([1, 2]),
    rotary=st.booleans(),
    window=st.sampled_from([0, 1, 3, 6]),
    softcap=st.sampled_from([0.0, 20.0]),
    causal=st.booleans(),
    norm_first=st.booleans(),
)


def import_grammar(grammar: Grammar, folder: Path) -> VersionRunner:
    """Import a random model of a grammar; the import compares it with the source."""
    config = GrammarConfig(grammar=vars(grammar), attn_implementation="eager")
    checkpoint = folder / "checkpoint"
    widened(GrammarModel(config).eval()).save_pretrained(checkpoint)
    word_tokenizer(most=32).save_pretrained(checkpoint)
    return VersionRunner(import_transformer(checkpoint, folder / "models", "grammar", 1), kept_bytes=2**20)


@given(GRAMMARS)
@settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_random_architectures_are_imported_rightly(grammar: Grammar) -> None:
    """An import that passes its comparison has the properties of attention, by its own constants and graphs.

    The softmax of masked scores is the weights, weights . v are the heads, rows that are asked for alone are those of
    all, and a token type matters.
    """
    with TemporaryDirectory() as folder:
        version = import_grammar(grammar, Path(folder))
        tokens = np.arange(5, 16)[None]
        (stages,) = version.run([Tokens(tokens)])
        layer = version.manifest.layers[1]
        site = stages.sites[1]
        assert (layer.heads, layer.key_value_heads) == (grammar.heads, grammar.key_value_heads)
        np.testing.assert_allclose(site.weights, site_weights(layer, site), atol=EPSILON)
        expected = site_reference(layer, site, site.weights)
        np.testing.assert_allclose(site.heads, expected, atol=EPSILON * np.abs(expected).max())
        chosen = np.array([7, 2])
        alone = dict(site.inputs, q=site.inputs["q"][:, chosen])
        if "mask" in alone:
            alone["mask"] = alone["mask"][:, :, chosen]
        graph = next(each for each in version.variants(layer, masked="mask" in alone) if each.weights)
        (weights,) = version.open(graph.file.name).run(["weights"], alone)
        np.testing.assert_allclose(weights, site.weights[:, :, chosen], atol=EPSILON)
        (typed,) = version.run([Tokens(tokens, np.ones_like(tokens))])
        assert np.abs(typed.sites[0].weights - stages.sites[0].weights).max() > 0.01 or grammar.window == 1


def test_the_reference_is_eager_and_leaves_the_source_as_it_is() -> None:
    """Copies in both precisions have configs of their own, so that neither runs the source's attention."""
    model = tiny_model("bert")
    model.set_attn_implementation("sdpa")
    reference = Reference(model, model.state_dict().__getitem__)
    assert model.config._attn_implementation == "sdpa"
    for copied in (reference.exact, reference.single):
        assert copied.model.config is not model.config
        assert copied.model.config._attn_implementation == "eager"
    assert reference.exact.model.dtype == torch.float64 and reference.is_exact
    assert reference.description.endswith("eager, float64")


def test_the_reference_says_where_the_source_computes_in_float32() -> None:
    """A model that rounds its rotations or its softmax to float32 is named as such in the parity."""
    model = tiny_model("qwen3")
    assert "float32 in" in Reference(model, model.state_dict().__getitem__).description


def test_a_model_without_weights_cannot_be_compared() -> None:
    """A source that returns no attentions is refused in words."""

    class Silent(GrammarModel):
        def forward(self, input_ids: Tensor, **options: Any) -> BaseModelOutput:
            return super().forward(input_ids, **(options | {"output_attentions": False}))

    silent = Silent(GrammarConfig(attn_implementation="eager")).eval()
    model = EagerModel(silent, silent.state_dict().__getitem__, torch.float32)
    with pytest.raises(ImportFailure, match="does not return its attentions"):
        model.run({"input_ids": np.ones((1, 3), np.int64)})
