"""Whether a model takes pairs of texts."""

from attention_export.importing.transformer.tokenizer import ImportedTokenizer


def takes_pairs(tokenizer: ImportedTokenizer, types: int) -> bool:
    """Return whether a pair has special tokens of its own, and the token types that the source's model is given.

    A model without token types takes pairs too: `transformers` leaves out the types of its tokenizer. Where the source
    leaves them out of a model that has types, the pair is not taken.

    Args:
        tokenizer: of the model's texts.
        types: the number of token types that the model embeds; 0 for a model without types.
    """
    added = tokenizer.tokenizer.num_special_tokens_to_add
    if added(is_pair=True) <= added(is_pair=False):
        return False
    largest = max(tokenizer.tokenizer.encode("a", "a").type_ids, default=0)
    return not types or largest < (types if tokenizer.gives_types else 1)
