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
        words: the words of the translation.
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
        return " ".join(self.words)

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
    predictor = _next_word(served)
    memory = yield methodcaller("create_memory", model, memory_text=text, version=version, timeout=timeout)
    steps = yield from _words_flow(served, predictor, memory, timeout)
    spoken = [prediction for prediction, _ in steps if not _is_mark(prediction.label)]
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


def _words_flow(
    model: pb.Model, predictor: str, memory: Memory, timeout: float | None
) -> Turns[list[tuple[Prediction, Array]]]:
    """Predict word after word, the end included, each with the weights [H, S] that it was read from."""
    steps: list[tuple[Prediction, Array]] = []
    words: list[str] = []
    longest = model.manifest.text.max_tokens or _MAX_TOKENS
    tokens = 0
    while tokens <= longest:
        result = yield methodcaller(
            "attend",
            model.name,
            version=model.version,
            text=" ".join(words),
            memory=memory,
            outputs=_NEXT,
            timeout=timeout,
        )
        spoken = next(prediction for prediction in result.predictions if prediction.name == predictor)
        steps.append((spoken, result.weights[:, 0]))
        if _is_mark(spoken.label):
            break
        words.append(spoken.label)
        tokens = len(result.tokens) + 1
    return steps


def _next_word(model: pb.Model) -> str:
    """Return the name of the predictor of the next word.

    Raises:
        InvalidRequest: the model has none.
    """
    for predictor in model.manifest.predictors:
        if predictor.rows == pb.Predictor.ROWS_LAST and any(map(_is_mark, predictor.labels)):
            return predictor.name
    raise InvalidRequest(
        f"{model.name!r} does not translate: it has no predictor that reads the next word from the last row, with a "
        "label for the end, as [END]",
        field="model",
    )


def _is_mark(label: str) -> bool:
    """Return whether a label is no word of a text."""
    return label.startswith("[") and label.endswith("]")


def _aligning_head(manifest: pb.Manifest) -> int | None:
    """Return the head that the record of the training names, when the model has it."""
    head = int(manifest.training.figures.get("head", -1))
    return head if 0 <= head < manifest.layers[-1].heads else None
