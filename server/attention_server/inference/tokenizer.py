"""The tokenizer of one model's texts."""

import difflib
import hashlib
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple
from weakref import WeakValueDictionary

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Text
from attention_proto.text import Truncate
from tokenizers import Encoding, Tokenizer
from tokenizers.processors import TemplateProcessing

from attention_server.domain.messages import Array, Span, Tokens
from attention_server.errors import InvalidRequest
from attention_server.inference.truncation import kept_tokens

LONGEST_TOKEN = 64  # characters, on average over a text, its spaces included
METASPACE = "\u2581"  # stands for a space in vocabularies of SentencePiece
NEAR_WORDS = 3  # named in the refusal of an unknown word
MAX_NAMES = 1024  # kept, of tokens without characters
MOST_TOKENS = 16_384  # of a model without a limit of its own


class _Encoded(NamedTuple):
    """A text's tokens as the library gives these, each a list of T."""

    ids: list[int]
    types: list[int]
    names: list[str]
    spans: list[tuple[int, int]]
    special: list[int]


class TextTokenizer:
    """A model's tokenizer.

    Args:
        content: of a `tokenizer.json`.
        allow_unknown: whether words outside the vocabulary are read as the unknown token.
        max_tokens: the longest text; 0 is any.
        size: the number of tokens that the model has vectors for; 0 for those of the tokenizer.
        start: the token that stands before each text, in place of the tokenizer's own special tokens; None for none.
    """

    def __init__(
        self, content: bytes, *, allow_unknown: bool, max_tokens: int, size: int = 0, start: int | None = None
    ) -> None:
        self._tokenizer = Tokenizer.from_buffer(content)
        if start is not None:
            token = self._tokenizer.id_to_token(start)
            self._tokenizer.post_processor = TemplateProcessing([token, "$A"], None, [(token, start)])
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._unknown = None if allow_unknown else json.loads(content)["model"].get("unk_token")
        self._max_tokens = max_tokens
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {id_ for id_, token in added.items() if token.special}
        self.size = size or 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    @classmethod
    def of_query(cls, text: Text, contents: Mapping[str, bytes]) -> "TextTokenizer | None":
        """Return the tokenizer of a model's text; None for a model without text."""
        if not text.front.name:
            return None
        content = contents[text.tokenizer.name]
        start = text.start_token if text.HasField("start_token") else None
        return _shared(content, text.allow_unknown, text.max_tokens, text.vocabulary_size, start)

    @classmethod
    def of_memory(cls, text: Text, contents: Mapping[str, bytes]) -> "TextTokenizer | None":
        """Return the tokenizer of a model's memory text; None for a model without memory text."""
        if not text.memory_front.name:
            return None
        content = contents[text.memory_tokenizer.name or text.tokenizer.name]
        return _shared(content, text.allow_unknown, text.max_memory_tokens, text.memory_vocabulary_size, None)

    @property
    def ids(self) -> list[int]:
        """The ids of all tokens in the vocabulary; special tokens that were added to it are left out."""
        return sorted(self._tokenizer.get_vocab(with_added_tokens=False).values())

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The tokens by id, special ones included; empty strings where there is none."""
        tokens = {number: token for token, number in self._tokenizer.get_vocab(with_added_tokens=True).items()}
        return tuple(tokens.get(number, "") for number in range(max(tokens, default=-1) + 1))

    @property
    def labels(self) -> tuple[str, ...]:
        """The tokens by id, as `names`."""
        return tuple(self.names(range(len(self.vocabulary))))

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The words of a closed vocabulary, by id; empty where any word is read."""
        if self._unknown is None:
            return ()
        beside = {
            self._unknown,
            "",
            *self._tokenizer.encode("").tokens,
            *map(self._tokenizer.id_to_token, self._special),
        }
        return tuple([word for word in self.vocabulary if word not in beside])

    @property
    def special_ids(self) -> list[int]:
        """The ids of special tokens."""
        return sorted(self._special)

    def read(
        self,
        text: str,
        field: str,
        *,
        truncate: Truncate = "none",
        pair: str | None = None,
        pair_field: str = "",
        first: int = 0,
    ) -> Tokens:
        """Return the tokens of a text, or of a pair of texts.

        Args:
            text: the text, or the first one of a pair.
            field: its path in the request.
            truncate: where tokens beyond the longest text are dropped; special tokens stay.
            pair: the second text of a pair; None for one text.
            pair_field: its path in the request.
            first: the number of tokens that stand before the text; behind tokens a text has no special tokens.

        Raises:
            InvalidRequest: a word is not in the vocabulary, or the text has no tokens or too many.
        """
        sent = ((text, field),) if pair is None else ((text, field), (pair, pair_field))
        for each in sent:
            self._check_characters(*each)
        try:
            encoding = self._tokenizer.encode(text, pair, add_special_tokens=not first)
        except Exception as error:  # the library has no type for a pattern that gives up on a text
            raise InvalidRequest("this model's tokenizer cannot split the text", field=field) from error
        # For each token the index of its text; None for a special token that is put beside.
        texts: Sequence[int | None] = [0] * len(encoding) if pair is None else encoding.sequence_ids
        self._check_words(encoding, texts, sent)
        tokens = _Encoded(
            encoding.ids, encoding.type_ids, encoding.tokens, encoding.offsets, encoding.special_tokens_mask
        )
        dropped = 0
        if 0 < self._max_tokens - first < len(encoding) and truncate != "none":
            texts = encoding.sequence_ids
            kept = kept_tokens(texts, self._max_tokens - first, truncate).tolist()
            dropped = len(encoding) - len(kept)
            tokens = _Encoded(*[[each[place] for place in kept] for each in tokens])
            texts = [texts[place] for place in kept]
        self._check_length(len(tokens.ids), field, first, "; `truncate` cuts it" if truncate == "none" else "")
        each_own = zip(tokens.spans, tokens.ids, strict=True)
        if pair is None:
            shown = [text[start:end] or self._named(id_) for (start, end), id_ in each_own]
        else:
            each_text = [sent[index or 0][0] for index in texts]
            shown = [
                own[start:end] or self._named(id_) for own, ((start, end), id_) in zip(each_text, each_own, strict=True)
            ]
        return Tokens(
            ids=np.array(tokens.ids, np.int64),
            types=np.array(tokens.types, np.int64),
            vocabulary=tuple(tokens.names),
            shown=tuple(shown),
            spans=tuple(map(Span._make, tokens.spans)),
            truncated=dropped,
            special=tuple(map(bool, tokens.special)),
        )

    def take(self, ids: Array, field: str, first: int = 0) -> Tokens:
        """Return tokens that were sent as ids, as they are, behind `first` tokens.

        Raises:
            InvalidRequest: an id is not of this model, or there are too few or too many.
        """
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise InvalidRequest(f"must be a list of integers, not {ids.dtype} {list(ids.shape)}", field=field)
        if not len(ids):
            raise InvalidRequest("has no tokens; send at least one", field=field)
        self._check_length(len(ids), field, first, most=MOST_TOKENS)
        numbers = ids.astype(np.int64)
        wrong = (numbers < 0) | (numbers >= self.size)
        if wrong.any():
            first = int(wrong.argmax())
            raise InvalidRequest(
                f"is {ids[first]}; the ids of this model's tokens are 0 to {self.size - 1}", field=f"{field}[{first}]"
            )
        tokens = numbers.tolist()
        return Tokens(
            ids=numbers,
            types=np.zeros_like(numbers),
            vocabulary=tuple([self._tokenizer.id_to_token(each) or "" for each in tokens]),
            shown=tuple(self.names(tokens)),
            spans=(),
            special=tuple([each in self._special for each in tokens]),
        )

    def _check_length(self, length: int, field: str, first: int, remedy: str = "", most: int = 0) -> None:
        """Check a number of tokens behind `first` tokens; `most` is for a model without a limit of its own."""
        longest = self._max_tokens or most
        if 0 < longest < first + length:
            behind = f" behind the {first} of the memory" if first else ""
            raise InvalidRequest(
                f"has {length} tokens{behind}; this model reads at most {longest}{remedy}", field=field
            )

    def _check_characters(self, text: str, field: str) -> None:
        longest = LONGEST_TOKEN * (self._max_tokens or MOST_TOKENS)
        if len(text) > longest:  # before it costs anything
            raise InvalidRequest(f"has {len(text)} characters; this model reads at most {longest}", field=field)

    def _check_words(self, encoding: Encoding, texts: Sequence[int | None], sent: Sequence[tuple[str, str]]) -> None:
        """Check that there are tokens, and that each word is in the vocabulary, where it has to be."""
        if not encoding.ids:
            raise InvalidRequest("has no words in it; send at least one", field=sent[0][1])
        if self._unknown is None:
            return
        for token, (start, end), index in zip(encoding.tokens, encoding.offsets, texts, strict=True):
            if token == self._unknown:
                text, field = sent[index or 0]
                word = text[start:end][:LONGEST_TOKEN]
                near = " or ".join(map(repr, difflib.get_close_matches(word.lower(), self.words, NEAR_WORDS)))
                raise InvalidRequest(
                    f"the word {word!r} is not in this model's vocabulary of {self._tokenizer.get_vocab_size()} words; "
                    + (f"did you mean {near}?" if near else "use others"),
                    field=field,
                )

    def names(self, ids: Sequence[int]) -> list[str]:
        """Return tokens as text, each by itself: a special token is its name, and an unknown id an empty string.

        A token that begins a word keeps its space where the vocabulary has it in the token, as in `\u0120word` and
        `\u2581word`. A part of a character is shown as U+FFFD.
        """
        texts = self._tokenizer.decode_batch([[id_] for id_ in ids], skip_special_tokens=False)
        return [self._name(id_, text) for id_, text in zip(ids, texts, strict=True)]

    @cached_property
    def _named(self) -> Callable[[int], str]:
        """The function that names a token without characters, such as a special one; the latest names are kept."""
        return lru_cache(MAX_NAMES)(lambda id_: self.names([id_])[0])

    def _name(self, id_: int, text: str) -> str:
        token = self._tokenizer.id_to_token(id_) or ""
        if id_ in self._special:
            return token
        if token.startswith(METASPACE) and not text.startswith(" "):  # its decoder drops the first space of a text
            text = f" {text}"
        return text or token


_in_use: WeakValueDictionary[Hashable, TextTokenizer] = WeakValueDictionary()


def _shared(content: bytes, allow_unknown: bool, max_tokens: int, size: int, start: int | None) -> TextTokenizer:
    """Return the tokenizer that another version has already where its file and limits are the same, or a new one."""
    key = hashlib.sha256(content).digest(), allow_unknown, max_tokens, size, start
    found = _in_use.get(key)
    if found is None:
        found = TextTokenizer(content, allow_unknown=allow_unknown, max_tokens=max_tokens, size=size, start=start)
        _in_use[key] = found
    return found
