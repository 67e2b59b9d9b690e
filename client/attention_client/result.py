"""The result of one sequence."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from numpy.typing import NDArray

from attention_client.errors import NotRequested
from attention_client.keywords import suggests_keywords
from attention_client.memory import Memory

Array = NDArray[Any]


@suggests_keywords
@dataclass(frozen=True)
class Ablation:
    """Heads that are switched off: their results are zero behind the weights, which are still told.

    Attributes:
        layers: which layers, as in `OutputSpec`; may be empty in a model of one site.
        heads: which heads; all when empty.
    """

    layers: Iterable[str] = ()
    heads: Iterable[int] = ()


class TopK(NamedTuple):
    """The k largest of each row, in descending order; of equal values the lower index first, masked keys last."""

    indices: Array
    """Key positions, integers [H, T, k]; [H, k] of pooled rows."""
    values: Array
    """The values there, of the same shape."""


class Link(NamedTuple):
    """A pair of positions, from 0."""

    source: int
    """The key position: of the source, or of the memory."""
    target: int
    """The query position; behind a start token, row i is the one from which token i of the text is predicted."""


class Alignment(NamedTuple):
    """The key that each query attends to most."""

    links: tuple[Link, ...]
    """One for each row, in the order of the rows; none for a row that may attend to no key."""
    pharaoh: str
    """The links in Pharaoh's form: `0-1 1-0`, source before target."""

    def __str__(self) -> str:
        return self.pharaoh


class Candidate(NamedTuple):
    """A label that a model's head considered."""

    id: int
    """The position among the predictor's labels; of a vocabulary, the token's id."""
    label: str
    """The label."""
    probability: float
    """Its probability, in 0..1."""


class Prediction(NamedTuple):
    """One answer of a model's head."""

    name: str
    """The predictor's name."""
    label: str
    """The most probable label, or the one that was drawn."""
    probability: float
    """Its probability, in 0..1."""
    row: int | None
    """The query position it was read from; None when read from the mean of all positions."""
    id: int = 0
    """The position of the label among the predictor's labels; of a vocabulary, the token's id."""
    top: tuple[Candidate, ...] = ()
    """The most probable labels, in descending order; empty unless the request asked for `top`."""


class Span(NamedTuple):
    """The place of a token in its text, in characters; end exclusive."""

    start: int
    end: int


OutputValue = Array | TopK | Alignment


@dataclass(frozen=True)
class Tokenization:
    """The tokens of one text or pair of texts, as read by a model.

    Attributes:
        token_ids: the id of each token.
        tokens: each token as it stands in the text; one without characters there, such as a special one, by its name.
        token_offsets: the place of each token in its text.
        token_types: the type of each token: its text's place in a pair, as the tokenizer counts it.
        special: whether each token is one that the tokenizer put beside the text.
        truncated_tokens: the number of tokens that were dropped.
    """

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    token_offsets: tuple[Span, ...]
    token_types: tuple[int, ...]
    special: tuple[bool, ...]
    truncated_tokens: int = 0


@dataclass(frozen=True, repr=False, eq=False)
class AttendResult:
    """The answer for one sequence.

        result = client.attend("multi-head", text="I gave my cat Tater a toy", outputs=["weights", "predictions"])
        result.weights             # [H, T, S]; as `output` and `alignment`, an attribute
        result["weights"]          # any output by its name or alias, such as result["q"]
        result.tokens, result.predictions

    Arrays are read-only views of the message: copy one to change it.

    Attributes:
        model: the model that answered.
        version: its version.
        outputs: the requested stages, by name, in the order of the request, without a batch dimension: an array, or a
            `TopK` where the request had a `top_k`, an `Alignment` of `alignment`.
        tokens: the query's tokens; empty where neither a text nor ids of tokens were sent.
        memory_tokens: the memory's tokens; empty where neither a memory text nor ids of its tokens were sent.
        key_tokens: the names of the keys (the last axis of weights and scores): the memory's tokens, or the
            sequence's own where it attends to itself; empty where keys have no names. Where outputs are of sites of
            several kinds, those of cross sites; `axes` tells the names for each output.
        predictions: the answers of the model's head, when requested.
        token_offsets, memory_token_offsets: the place of each token in its text, in a pair in its own one, when
            requested; empty where ids of tokens were sent.
        truncated_tokens, memory_truncated_tokens: the number of tokens of a text that were dropped.
        layers: the layer that an output was asked of, by the output's name, where that name does not tell it.
        memory: the kept keys and values of the sequence and its memory; None unless it was sent with `extend`.
        prefix_tokens: the tokens of the prefix that the sequence goes on behind, where `memory` was sent as a `Memory`:
            keys of the sequence's own sites begin with these.
        ablate: the heads that were switched off.
        score_temperature: the number that divided the masked scores; None without one.
    """

    model: str
    version: int
    outputs: Mapping[str, OutputValue]
    tokens: tuple[str, ...] = ()
    memory_tokens: tuple[str, ...] = ()
    key_tokens: tuple[str, ...] = ()
    predictions: tuple[Prediction, ...] = ()
    token_offsets: tuple[Span, ...] = ()
    memory_token_offsets: tuple[Span, ...] = ()
    truncated_tokens: int = 0
    memory_truncated_tokens: int = 0
    layers: Mapping[str, str] = field(default_factory=dict)
    memory: Memory | None = None
    prefix_tokens: tuple[str, ...] = ()
    ablate: tuple[Ablation, ...] = ()
    score_temperature: float | None = None

    def axes(self, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the names of the rows and of the keys of one output of weights or scores; empty for no names.

        Both are of the source for a site `encoder.N`, both of the target for `decoder.N`. For `decoder.N.cross`, and in
        a model of one chain, rows are `tokens` and keys `key_tokens`.
        """
        layer = name.partition("@")[2] or self.layers.get(name, "")
        if layer.startswith("encoder."):
            return self.memory_tokens, self.memory_tokens
        if layer.startswith("decoder.") and not layer.endswith(".cross"):
            return self.tokens, self.prefix_tokens + self.tokens
        return self.tokens, self.key_tokens

    @property
    def output(self) -> Array:
        """The combined output, [T, D]; [D] of pooled rows. Raises NotRequested when the request left it out."""
        return self._array("output")

    @property
    def alignment(self) -> Alignment:
        """The alignment of the chosen heads. Raises NotRequested when the request left it out."""
        return self["alignment"]  # type: ignore[no-any-return]

    @property
    def weights(self) -> Array:
        """The attention weights, [H, T, S], rows sum to 1. Raises NotRequested without these, and of a top k."""
        weights = self._array("weights")
        if weights.ndim < 3:
            raise NotRequested("weights without heads or rows were asked for: read them as result['weights']")
        return weights

    def __getitem__(self, name: str) -> Any:
        """Return one output; raises NotRequested, a KeyError, when the request left it out."""
        if name not in self.outputs:
            here = ", ".join(self.outputs) or "no outputs"
            raise NotRequested(f"the result has no {name!r}: add it to `outputs` of the request (it holds {here})")
        return self.outputs[name]

    def _repr_html_(self) -> str | None:
        """Show the weights in a notebook; None, which shows `repr`, where the result has no weights."""
        try:
            return _views["text/html"](self)
        except NotRequested:
            return None

    def _array(self, name: str) -> Array:
        value = self[name]
        if isinstance(value, TopK):
            raise NotRequested(f"only the largest {name} were asked for: read them as result[{name!r}]")
        return value  # type: ignore[no-any-return]  # all outputs but a TopK are arrays

    def __repr__(self) -> str:
        outputs = ", ".join(f"{name} {summary(value)}" for name, value in self.outputs.items())
        return f"<AttendResult of {self.model} {self.version}: {outputs}; {len(self.predictions)} predictions>"


def summary(value: OutputValue) -> str:
    """Return an output's number format and shape, as `float32[3, 7, 7]`, or the number of links."""
    if isinstance(value, Alignment):
        return f"{len(value.links)} links"
    array, prefix = (value.values, "top ") if isinstance(value, TopK) else (value, "")
    return f"{prefix}{array.dtype}{list(array.shape)}"


def register_html_view(view: Callable[[AttendResult], str]) -> None:
    """Set the function that draws results in notebooks: `attention_client.display` calls this when it is imported."""
    _views["text/html"] = view


_views: dict[str, Callable[[AttendResult], str]] = {}  # by media type
