"""Tiny random checkpoints of many architectures, with an attention far from uniform."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerFast

WORDS = 100
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")  # 0 to 4
PAD, BEGIN, END, MASK = 0, 2, 3, 4
SMALL: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 80,
    "pad_token_id": PAD,
    "bos_token_id": BEGIN,
    "eos_token_id": END,
}
ROTARY: dict[str, Any] = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
RELATIVE: dict[str, Any] = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_buckets": 8,
    "max_relative_positions": 24,
    "norm_rel_ebd": "layer_norm",
    "type_vocab_size": 0,
    "position_biased_input": False,
}
WIDTHS = (0.2, 0.35, 0.5, 0.7, 1.0, 1.5, 2.0)  # standard deviations of matrices, tried in turn
FAR_FROM_UNIFORM = 0.5  # of the median row's largest weight

# The fields of each model type's config.
KINDS: dict[str, dict[str, Any]] = {
    "bert": SMALL,
    "roberta": SMALL | {"pad_token_id": 1},
    "distilbert": {
        "vocab_size": WORDS,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 48,
        "max_position_embeddings": 80,
    },
    "albert": SMALL | {"embedding_size": 16, "num_hidden_layers": 3},
    "electra": SMALL | {"embedding_size": 16},
    "mpnet": SMALL | {"pad_token_id": 1},
    "deberta-v2": SMALL | RELATIVE | {"share_att_key": True},
    "modernbert": SMALL | {"cls_token_id": BEGIN, "sep_token_id": END, "local_attention": 8, "num_hidden_layers": 4},
    "nomic_bert": SMALL,
    "esm": SMALL | {"mask_token_id": MASK, "position_embedding_type": "rotary", "token_dropout": True},
    "xlm-roberta": SMALL | {"pad_token_id": 1},
    "camembert": SMALL | {"pad_token_id": 1},
    "ernie": SMALL | {"use_task_id": True},
    "data2vec-text": SMALL | {"pad_token_id": 1, "max_position_embeddings": 40},
    "roberta-prelayernorm": SMALL | {"pad_token_id": 1},
    "xlm-roberta-xl": SMALL | {"pad_token_id": 1},
    "bert-generation": SMALL,
    "eurobert": ROTARY,
    "jina_embeddings_v3": SMALL | {"pad_token_id": 1},
    "splinter": SMALL,
    "clip_text_model": SMALL,
    "gemma3_text": ROTARY | {"sliding_window": 6, "use_bidirectional_attention": True, "num_hidden_layers": 6},
}

STACKS: dict[str, Any] = {
    "vocab_size": WORDS,
    "d_model": 32,
    **{
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))
    },
    "max_position_embeddings": 80,
    "pad_token_id": PAD,
    "bos_token_id": BEGIN,
    "eos_token_id": END,
    "decoder_start_token_id": END,
}
T5: dict[str, Any] = {
    "vocab_size": WORDS,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 10,
    "pad_token_id": PAD,
    "eos_token_id": END,
    "decoder_start_token_id": PAD,
}
# Encoder-decoders, likewise.
ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "t5": T5,
    "mt5": T5 | {"feed_forward_proj": "gated-gelu"},
    "umt5": T5,
    "marian": STACKS | {"decoder_start_token_id": PAD, "share_encoder_decoder_embeddings": False},
    "bart": STACKS,
    "mbart": STACKS,
    "plbart": STACKS,
    "pegasus": STACKS | {"decoder_start_token_id": PAD},
    "blenderbot": STACKS,
    "blenderbot-small": STACKS,
    "m2m_100": STACKS,
}
# Decoders, imported with their heads: the fields of each config, by model type, with a word behind it for a variant.
EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
WINDOW = {"sliding_window": 6}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.7],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": 40,
    "rope_theta": 1e4,
}
GPT2: dict[str, Any] = {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 80}
DECODERS: dict[str, dict[str, Any]] = {
    "gpt2": GPT2 | {"bos_token_id": BEGIN, "eos_token_id": END},
    "gpt_neox": SMALL | {"rotary_pct": 0.5},
    "opt": SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi": SMALL,
    "llama": ROTARY,
    "mistral": ROTARY | WINDOW,
    "qwen2": ROTARY,
    "qwen3": ROTARY,
    "qwen3 dynamic": ROTARY | {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
    "gemma2": ROTARY | WINDOW | {"query_pre_attn_scalar": 8},
    "gemma3_text causal": ROTARY | WINDOW | {"layer_types": ["sliding_attention", "full_attention"]},
    "phi3 longrope": ROTARY | {"rope_parameters": LONGROPE, "original_max_position_embeddings": 40},
    "smollm3": ROTARY | {"no_rope_layers": [1, 0]},
    "olmo2": ROTARY,
    "gpt_oss": ROTARY | EXPERTS | WINDOW,
    "mixtral": ROTARY | EXPERTS,
    "stablelm": ROTARY,
    "granite": ROTARY | {"logits_scaling": 2.0, "attention_multiplier": 0.2, "residual_multiplier": 0.7},
    "cohere": ROTARY,
    "glm": ROTARY,
    "starcoder2": ROTARY | WINDOW,
}

# Kinds that are not imported: the fields of their configs, and words of the refusal.
BESIDE = "beside"  # the attention interface of transformers
SPARSE = {"attention_window": [4, 4]}
REFORMER = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "attention_head_size": 8,
    "num_attention_heads": 4,
    "attn_layers": ["local", "lsh"],
    "axial_pos_shape": [8, 8],
    "axial_pos_embds_dim": [16, 16],
    "max_position_embeddings": 64,
    "is_decoder": False,
    "num_buckets": 2,
    "pad_token_id": 0,
    "feed_forward_size": 32,
    "hash_seed": 0,
}
FUNNEL = {
    "vocab_size": WORDS,
    "block_sizes": [1, 1],
    "block_repeats": [1, 1],
    "d_model": 32,
    "n_head": 4,
    "d_head": 8,
    "d_inner": 32,
    "architectures": ["FunnelBaseModel"],
}
XLNET = {"vocab_size": WORDS, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 32}
PROPHETNET = {"vocab_size": WORDS, "hidden_size": 32, "num_encoder_layers": 1, "num_encoder_attention_heads": 4}
PROPHETNET |= {"num_decoder_layers": 1, "num_decoder_attention_heads": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
IMAGE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
SOUND = IMAGE | {"conv_dim": [8], "conv_kernel": [4], "conv_stride": [4], "num_feat_extract_layers": 1}
SOUND |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
CLIP = {"text_config": SMALL, "vision_config": IMAGE | {"image_size": 8, "patch_size": 4}, "projection_dim": 16}
JAMBA = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
JAMBA |= {"num_key_value_heads": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 9}
JAMBA |= {"mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False}
RECURRENT = {"vocab_size": WORDS, "hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2}
WHISPER = {"vocab_size": WORDS, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4}
WHISPER |= {"decoder_attention_heads": 4, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
WHISPER |= {"decoder_start_token_id": 2}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "longformer": (SMALL | SPARSE | {"pad_token_id": 1}, BESIDE),
    "big_bird": (SMALL | {"attention_type": "block_sparse", "block_size": 4}, BESIDE),
    "reformer": (REFORMER, BESIDE),
    "mamba": ({"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, "state-space"),
    "jamba": (JAMBA, "state-space"),
    "rwkv": (RECURRENT, "recurrent layers"),
    "convbert": (SMALL | {"embedding_size": 32}, BESIDE),
    "funnel": (FUNNEL, BESIDE),
    "xlnet": (XLNET, BESIDE),
    "fnet": (SMALL | {"tpu_short_seq_length": 16}, BESIDE),
    "megatron-bert": (SMALL, BESIDE),
    "layoutlm": (SMALL, "mask of its own"),
    "mobilebert": (
        SMALL | {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
        "cannot be traced",
    ),
    "roformer": (SMALL | {"embedding_size": 32}, BESIDE),
    "led": (STACKS | SPARSE, BESIDE),
    "longt5": (T5 | {"local_radius": 3}, BESIDE),
    "prophetnet": (PROPHETNET, BESIDE),
    "vit": (IMAGE | {"image_size": 8, "patch_size": 4}, "takes `pixel_values`"),
    "clip": (CLIP, "takes `pixel_values` (image, text)"),
    "wav2vec2": (SOUND, "takes `input_values`"),
    "whisper": (WHISPER, "takes `input_features`"),
    "deberta-v2": (SMALL | {"conv_kernel_size": 3, "relative_attention": True}, "conv_kernel_size"),
}


def tiny_model(kind: str, *, task: str = "", **fields: Any) -> PreTrainedModel:
    """Return a model with a largest weight above .5 in the median row.

    Args:
        kind: a key of `KINDS`, `DECODERS` or `ENCODER_DECODERS`, or a further config's `model_type`.
        task: of the class, such as `ForMaskedLM`; the base model when empty.
        fields: of the config, in place of those in `KINDS`.
    """
    known = KINDS | DECODERS | ENCODER_DECODERS
    config = AutoConfig.for_model(kind.split(maxsplit=1)[0], **(known.get(kind, SMALL) | fields))
    config.attn_implementation = "eager"
    factory = getattr(transformers, f"AutoModel{task}") if task else AutoModel
    return widened(factory.from_config(config, attn_implementation="eager").eval())


def save_model(folder: Path, kind: str, *, task: str = "", **fields: Any) -> PreTrainedModel:
    """Write a tiny model as a checkpoint without a tokenizer; return it. The arguments are those of `tiny_model`."""
    model = tiny_model(kind, task=task, **fields)
    model.save_pretrained(folder)
    return model


def random_model(kind: str, *, task: str = "", **fields: Any) -> PreTrainedModel:
    """Return a small random model with a config's own initialisation."""
    factory = getattr(transformers, f"AutoModel{task}")
    return factory.from_config(AutoConfig.for_model(kind, **fields)).eval()


def widened(model: PreTrainedModel) -> PreTrainedModel:
    """Draw a model's parameters anew, so wide that its attention is far from uniform; check that it is."""
    computed = model._keys_to_ignore_on_save or ()  # tables of sines, which no file holds
    for width in WIDTHS:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if any(each.endswith(name) for each in computed):
                    continue
                drawn = torch.randn(parameter.shape, generator=generator)
                if parameter.dim() > 1:
                    parameter.copy_(drawn * (0.5 if "embed" in name or "shared" in name else width))
                elif "q_norm" in name or "k_norm" in name:
                    parameter.copy_(4 * width + 0.2 * drawn)
                else:
                    parameter.copy_((name.endswith("weight") and "bias" not in name) + 0.2 * drawn)
        if sharpness(model) > FAR_FROM_UNIFORM:
            return model
    raise AssertionError(f"{type(model).__name__} attends too evenly")


def sharpness(model: PreTrainedModel) -> float:
    """Return the median, over the rows of all attentions, of a row's largest weight."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(len(SPECIAL), WORDS, (2, 13), generator=generator)
    given = {"input_ids": tokens} | ({"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {})
    with torch.no_grad():
        result = model(**given, output_attentions=True, return_dict=True)
    attentions = [weights for name in result if name.endswith("attentions") for weights in result[name]]
    return float(torch.cat([weights.max(-1).values.flatten() for weights in attentions]).median())


def word_tokenizer(*, most: int = 80) -> PreTrainedTokenizerFast:
    """Return a tokenizer of the words `w5` to `w99`, which puts `<s>` before a text and `</s>` behind it."""
    vocabulary = {token: number for number, token in enumerate(SPECIAL)}
    vocabulary |= {f"w{number}": number for number in range(len(SPECIAL), WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B:1 </s>:1",
        special_tokens=[("<s>", BEGIN), ("</s>", END)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        mask_token="<mask>",
        model_max_length=most,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def write_checkpoint(folder: Path, model: PreTrainedModel, **options: Any) -> Path:
    """Write a checkpoint as `save_pretrained` does, with a tokenizer; return the folder.

    Args:
        folder: made when absent.
        model: the model.
        options: of `save_pretrained`.
    """
    model.save_pretrained(folder, **options)
    word_tokenizer().save_pretrained(folder)
    return folder
