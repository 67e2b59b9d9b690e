"""Requests for the tokens of texts, and answers."""

from typing import NamedTuple

from attention_proto.text import Truncate

from attention_server.domain.messages import Tokens

HELD_TOKEN_BYTES = 400  # of a token in memory: its id, its texts and its place
INLINE_TOKENS = 1024  # of an answer that is written on the event loop
TOKEN_WORK_BYTES = 1024  # to make and write a token takes as long as to write so many bytes of a tensor


class TokenizeInput(NamedTuple):
    """One text, or a pair of texts.

    Attributes:
        text: the text, or the first one of a pair.
        text_pair: the second text of a pair; None for one text.
        path: path in the request, for errors: `inputs[0]`, or empty for a request's own fields.
    """

    text: str
    text_pair: str | None = None
    path: str = ""


class TokenizeRequest(NamedTuple):
    """Texts to tokenize.

    Attributes:
        model: name of the model.
        version: version of the model; 0 for the default.
        inputs: the texts.
        truncate: where tokens are dropped that are more than the model reads.
        memory: whether the tokenizer of memory texts reads the texts.
    """

    model: str
    version: int = 0
    inputs: tuple[TokenizeInput, ...] = ()
    truncate: Truncate = "none"
    memory: bool = False


class Tokenization(NamedTuple):
    """The tokens of each text, in order."""

    model: str
    version: int
    results: tuple[Tokens, ...]

    @property
    def takes_long(self) -> bool:
        """Whether the answer takes long to write."""
        return sum([len(each.ids) for each in self.results]) > INLINE_TOKENS
