"""Write a tiny checkpoint with random weights, as `transformers` saves a trained one: a decoder or an encoder-decoder.

Its predictions mean nothing; its attention is computed, cut and served like that of a trained model of its kind.

    python docs/examples/tiny_checkpoint.py decoder tiny-decoder
"""

import argparse

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, T5Config, T5ForConditionalGeneration

WORDS = ("<pad>", "</s>", "<unk>", "the", "cat", "dog", "mat", "sat", "ran", "on", "die", "Katze", "Hund", "lief")
SIZES = {"vocab_size": len(WORDS), "pad_token_id": 0, "eos_token_id": 1}


def tokenizer(*, ends: bool) -> PreTrainedTokenizerFast:
    """Return a tokenizer of `WORDS`; `ends` puts `</s>` behind each text."""
    words = Tokenizer(models.WordLevel({word: row for row, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if ends:
        words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def decoder() -> Qwen3ForCausalLM:
    """Return a Qwen3 of two layers: rotary positions, four heads that share two pairs of key and value."""
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "head_dim": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, **shape, num_hidden_layers=2, max_position_embeddings=64))


def translator() -> T5ForConditionalGeneration:
    """Return a T5 of two layers a side: relative positions, four heads."""
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 2}
    return T5ForConditionalGeneration(T5Config(**SIZES, **shape, decoder_start_token_id=0))


def main() -> None:
    """Write the checkpoint of a kind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=["decoder", "encoder-decoder"])
    parser.add_argument("folder")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    is_decoder = arguments.kind == "decoder"
    (decoder() if is_decoder else translator()).save_pretrained(arguments.folder)
    tokenizer(ends=not is_decoder).save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
