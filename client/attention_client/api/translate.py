"""Translation by greedy search: word after word, each predicted over a memory that is sent once."""

from collections.abc import Callable
from dataclasses import dataclass
from operator import methodcaller
from typing import Any, TypeVar

import numpy as np
from attention_proto.attention.v1 import attention_pb2 as pb

from attention_client.api.aio import AsyncAttentionClient
from attention_client.api.client import AttentionClient
from attention_client.errors import InvalidRequest
from attention_client.inputs import Output, OutputSpec
from attention_client.memory import Memory
from attention_client.result import Array, Prediction
from attention_client.wire.call import Flow, run, run_async

_MAX_TOKENS = 512  # of a text, where the model names no bound
T = TypeVar("T")
Turns = Flow[Callable[[Any], Any], T]  # each step calls a method of the client that it is given
_NEXT: list[Output] = [OutputSpec("weights", rows=[-1]), "predictions"]


@dataclass(frozen=True, eq=False)
class Translation:
    """A translated text, and the attention weights of each word.

    Attributes:
        model: the model that translated.
        version: its version.
        text: the source text.
        words: the words of the translation; its tokens, where the model predicts tokens of a vocabulary.
        probabilities: of each word, in 0..1, given the words before it.
        memory_tokens: S, the tokens of the text.
        weights: [words, H, S], the weights of each head from which each word was predicted.
        head: the head that aligns words, where the model's training named one.
        complete: whether the model predicted the end; else the translation reached the model's longest text.
    """

    model: str
    version: int
    text: str
    words: tuple[str, ...]
    probabilities: tuple[float, ...]
    memory_tokens: tuple[str, ...]
    weights: Array
    head: int | None
    complete: bool

    def __str__(self) -> str:
        # Tokens that begin a word have the space before it, where a vocabulary has such tokens.
        return ("" if any(word.startswith(" ") for word in self.words) else " ").join(self.words).strip()

    def alignment(self, head: int | None = None) -> Array:
        """Return the weights [words, S] of one head; by default of the head that aligns, or the mean of all heads.

        Raises:
            InvalidRequest: there is no such head.
        """
        head = self.head if head is None else head
        if head is None:
            return np.asarray(self.weights.mean(1))
        heads = self.weights.shape[1]
        if not 0 <= head < heads:
            raise InvalidRequest(f"there is no head {head}; there are 0 to {heads - 1}", field="head")
        return self.weights[:, head]


def translate(
    client: AttentionClient, model: str, text: str, *, version: int = 0, timeout: float | None = None
) -> Translation:
    """Translate a text: send it once as a memory, then predict word after word, each from the words so far.

    A model translates when it reads a text and a memory text, and its manifest has a predictor that reads the last row
    and has the possible next words as its labels. A label in square brackets, as `[END]`, is not a word, and ends the
    translation. So does `text.max_tokens`, the longest text that the model reads (512 tokens without one).

    An encoder-decoder with a vocabulary translates when its manifest has `text.end_tokens`: token after token, the most
    probable one each, behind `text.start_token`. That is the greedy search of `transformers` for a model whose
    generation config forces and forbids no tokens.

    The memory stays on the server until it expires; when it is gone between two words, it is sent again.

    Args:
        client: connected to the service.
        model: its name.
        text: the source text, in words that the model knows.
        version: of the model; 0 is its default, and the whole translation is by one version.
        timeout: seconds for each call, in place of the client's.

    Raises:
        InvalidRequest: the model does not translate, or not this text.
        AttentionError: as for `attend`.
    """
    return run(_translation_flow(model, text, version, timeout), lambda method: method(client))


async def translate_async(
    client: AsyncAttentionClient,
    model: str,
    text: str,
    *,
    version: int = 0,
    timeout: float | None = None,  # noqa: ASYNC109  # the deadline travels to the server
) -> Translation:
    """Translate a text by asyncio; otherwise as `translate`."""
    return await run_async(_translation_flow(model, text, version, timeout), lambda method: method(client))


def _translation_flow(model: str, text: str, version: int, timeout: float | None) -> Turns[Translation]:
    """Ask for the model, create the memory and predict the words."""
    served = yield methodcaller("model", model, version, timeout=timeout)
    version = served.version
    speech = _speech(served)
    memory = yield methodcaller("create_memory", model, memory_text=text, version=version, timeout=timeout)
    steps = yield from _words_flow(served, speech, memory, timeout)
    spoken = [prediction for prediction, _ in steps if not speech.ends(prediction)]
    return Translation(
        model=model,
        version=version,
        text=text,
        words=tuple(prediction.label for prediction in spoken),
        probabilities=tuple(prediction.probability for prediction in spoken),
        memory_tokens=memory.tokens,
        weights=np.stack([weights for _, weights in steps])[: len(spoken)],
        head=_aligning_head(served.manifest),
        complete=len(spoken) < len(steps),
    )


@dataclass(frozen=True)
class _Speech:
    """How a model predicts a text word after word.

    Attributes:
        predictor: the name of the predictor of the next word.
        start, ends_with: ids of the token before a text, and of those that end it; empty where words are sent as text,
            and a label in brackets ends it.
    """

    predictor: str
    start: tuple[int, ...] = ()
    ends_with: frozenset[int] = frozenset()

    def ends(self, prediction: Prediction) -> bool:
        """Return whether a prediction is the end of the text."""
        return prediction.id in self.ends_with if self.start else _is_mark(prediction.label)

    def so_far(self, spoken: list[Prediction]) -> dict[str, Any]:
        """Return the arguments of `attend` for the words so far."""
        if self.start:
            return {"token_ids": [*self.start, *(each.id for each in spoken)]}
        return {"text": " ".join(each.label for each in spoken)}


def _words_flow(
    model: pb.Model, speech: _Speech, memory: Memory, timeout: float | None
) -> Turns[list[tuple[Prediction, Array]]]:
    """Predict word after word, the end included, each with the weights [H, S] that it was read from."""
    steps: list[tuple[Prediction, Array]] = []
    spoken: list[Prediction] = []
    longest = model.manifest.text.max_tokens or _MAX_TOKENS
    tokens = len(speech.start)
    while tokens <= longest:
        result = yield methodcaller(
            "attend",
            model.name,
            version=model.version,
            **speech.so_far(spoken),
            memory=memory,
            outputs=_NEXT,
            timeout=timeout,
        )
        word = next(prediction for prediction in result.predictions if prediction.name == speech.predictor)
        steps.append((word, result.weights[:, 0]))
        if speech.ends(word):
            break
        spoken.append(word)
        tokens = len(result.tokens) + 1
    return steps


def _speech(model: pb.Model) -> _Speech:
    """Return how a model predicts the next word.

    Raises:
        InvalidRequest: it does not.
    """
    text = model.manifest.text
    for predictor in model.manifest.predictors:
        if predictor.rows != pb.Predictor.ROWS_LAST:
            continue
        if any(map(_is_mark, predictor.labels)):
            return _Speech(predictor.name)
        if predictor.vocabulary and text.HasField("start_token") and text.end_tokens:
            return _Speech(predictor.name, (text.start_token,), frozenset(text.end_tokens))
    raise InvalidRequest(
        f"{model.name!r} does not translate: it has no predictor that reads the next word from the last row, with a "
        "label for the end, as [END], or with a vocabulary, a start token and end tokens",
        field="model",
    )


def _is_mark(label: str) -> bool:
    """Return whether a label is no word of a text."""
    return label.startswith("[") and label.endswith("]")


def _aligning_head(manifest: pb.Manifest) -> int | None:
    """Return the head that the record of the training names, when the model has it."""
    head = int(manifest.training.figures.get("head", -1))
    return head if 0 <= head < manifest.layers[-1].heads else None
