"""Words of user data: texts split at spaces."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from attention_export.tasks.text import UNKNOWN

# Case and the punctuation behind a word are not heard; a mark that stands alone, as in split tokens, stays a word. So
# there are always as many words as a person counts, and each has its label.
NORMALIZER = normalizers.Sequence(
    [normalizers.Replace(Regex(r"(?<=\w)[.,!?;:]+(?=\s|$)"), ""), normalizers.Lowercase()]
)
SPLITTER = pre_tokenizers.WhitespaceSplit()


def split_words(text: str) -> tuple[str, ...]:
    """Return the words of a text in the vocabulary's form: the same as the tokenizer's, so that labels keep in step."""
    return tuple(word for word, _ in SPLITTER.pre_tokenize_str(NORMALIZER.normalize_str(text)))


def make_tokenizer(words: Iterable[str]) -> Tokenizer:
    """Make a tokenizer that knows these words; all further words are the unknown token, id 0."""
    vocabulary = [UNKNOWN, *sorted(set(words))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, UNKNOWN))
    tokenizer.normalizer = NORMALIZER
    tokenizer.pre_tokenizer = SPLITTER
    return tokenizer
