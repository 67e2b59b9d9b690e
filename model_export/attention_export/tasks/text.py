"""Tokenizers with words as tokens, so that every weight has a word on each side."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

UNKNOWN = "[UNK]"


def words(text: str) -> tuple[str, ...]:
    """Split a text at spaces."""
    return tuple(text.split())


def word_tokenizer(vocabulary: Iterable[str], *, begin: str = "", end: str = "", separators: str = ".,!?") -> Tokenizer:
    """Make a tokenizer of whole words, which ignores case.

    Args:
        vocabulary: the words; ids follow this order, after the ids of the unknown token, `begin` and `end`.
        begin: a token inserted before every text, if given; no text can contain it.
        end: a token appended to every text, likewise.
        separators: characters that are read as spaces.
    """
    special = [token for token in (begin, end) if token]
    tokens = dict.fromkeys([UNKNOWN, *special, *(word.lower() for word in vocabulary)])
    ids = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(ids, UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(f"[{separators}]"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join(filter(None, [begin, "$A", end])), special_tokens=[(token, ids[token]) for token in special]
        )
    return tokenizer
