"""The tokenizer of one model's texts."""

import json
from collections.abc import Mapping

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Text
from tokenizers import Encoding, Tokenizer
from tokenizers.processors import TemplateProcessing

from attention_server.domain.messages import Array, Span, Tokens
from attention_server.errors import InvalidRequest

LONGEST_TOKEN = 64  # characters, on average over a text, its spaces included
MOST_TOKENS = 16_384  # of a model without a limit of its own


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
        self.size = size or len(self.vocabulary)

    @classmethod
    def of_query(cls, text: Text, contents: Mapping[str, bytes]) -> "TextTokenizer | None":
        """Return the tokenizer of a model's text; None for a model without text."""
        if not text.front.name:
            return None
        content = contents[text.tokenizer.name]
        limits = {"max_tokens": text.max_tokens, "size": text.vocabulary_size}
        start = text.start_token if text.HasField("start_token") else None
        return cls(content, allow_unknown=text.allow_unknown, start=start, **limits)

    @classmethod
    def of_memory(cls, text: Text, contents: Mapping[str, bytes]) -> "TextTokenizer | None":
        """Return the tokenizer of a model's memory text; None for a model without memory text."""
        if not text.memory_front.name:
            return None
        content = contents[text.memory_tokenizer.name or text.tokenizer.name]
        limits = {"max_tokens": text.max_memory_tokens, "size": text.memory_vocabulary_size}
        return cls(content, allow_unknown=text.allow_unknown, **limits)

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
    def special_ids(self) -> list[int]:
        """The ids of special tokens."""
        return sorted(id_ for id_, token in self._tokenizer.get_added_tokens_decoder().items() if token.special)

    def read(self, text: str, field: str) -> Tokens:
        """Return the tokens of a text.

        Raises:
            InvalidRequest: a word is not in the vocabulary, or the text has no tokens or too many.
        """
        longest = LONGEST_TOKEN * (self._max_tokens or MOST_TOKENS)
        if len(text) > longest:  # before it costs anything
            raise InvalidRequest(f"has {len(text)} characters; this model reads at most {longest}", field=field)
        encoding = self._tokenizer.encode(text)
        self._check(text, encoding, field)
        return Tokens(
            ids=np.array(encoding.ids, np.int64),
            types=np.array(encoding.type_ids, np.int64),
            vocabulary=tuple(encoding.tokens),
            shown=tuple(
                _shown(text, token, *span) for token, span in zip(encoding.tokens, encoding.offsets, strict=True)
            ),
            spans=tuple(Span(*span) for span in encoding.offsets),
        )

    def take(self, ids: Array, field: str) -> Tokens:
        """Return tokens that were sent as ids, as they are.

        Raises:
            InvalidRequest: they are no list of ids of this model, or too few or too many.
        """
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise InvalidRequest(f"must be a list of integers, not {ids.dtype} {list(ids.shape)}", field=field)
        if not len(ids):
            raise InvalidRequest("has no tokens; send at least one", field=field)
        self._check_length(len(ids), field)
        numbers = ids.astype(np.int64)
        wrong = (numbers < 0) | (numbers >= self.size)
        if wrong.any():
            first = int(wrong.argmax())
            raise InvalidRequest(
                f"is {ids[first]}; the ids of this model's tokens are 0 to {self.size - 1}", field=f"{field}[{first}]"
            )
        names = tuple([self._tokenizer.id_to_token(each) or "" for each in numbers.tolist()])
        return Tokens(ids=numbers, types=np.zeros_like(numbers), vocabulary=names, shown=names, spans=())

    def _check_length(self, length: int, field: str) -> None:
        if 0 < self._max_tokens < length:
            raise InvalidRequest(f"has {length} tokens; this model reads at most {self._max_tokens}", field=field)

    def _check(self, text: str, encoding: Encoding, field: str) -> None:
        if not encoding.ids:
            raise InvalidRequest("has no words in it; send at least one", field=field)
        self._check_length(len(encoding.ids), field)
        for token, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True):
            if self._unknown is not None and token == self._unknown:
                raise InvalidRequest(
                    f"the word {text[start:end][:64]!r} is not in this model's vocabulary of "
                    f"{self._tokenizer.get_vocab_size()} words; use others",
                    field=field,
                )


def _shown(text: str, token: str, start: int, end: int) -> str:
    """Return a token as written in the text, where the tokenizer changed its case at most; else the token."""
    written = text[start:end]
    return written if written.lower() == token.lower() else token
