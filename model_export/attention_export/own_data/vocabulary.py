"""Words of user data: texts split at spaces."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from attention_export.tasks.text import UNKNOWN

# Case and punctuation after a word are ignored; a punctuation mark between spaces, as in tokenized text, stays a word.
# So the number of words is the number that the labels of a text have to match.
NORMALIZER = normalizers.Sequence(
    [normalizers.Replace(Regex(r"(?<=\w)[.,!?;:]+(?=\s|$)"), ""), normalizers.Lowercase()]
)
SPLITTER = pre_tokenizers.WhitespaceSplit()


def split_words(text: str) -> tuple[str, ...]:
    """Split a text into words as the tokenizer does, so that labels and tokens align."""
    return tuple(word for word, _ in SPLITTER.pre_tokenize_str(NORMALIZER.normalize_str(text)))


def make_tokenizer(words: Iterable[str]) -> Tokenizer:
    """Make a tokenizer of these words; every further word is the unknown token, id 0."""
    vocabulary = [UNKNOWN, *sorted(set(words))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, UNKNOWN))
    tokenizer.normalizer = NORMALIZER
    tokenizer.pre_tokenizer = SPLITTER
    return tokenizer
