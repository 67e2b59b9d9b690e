"""Translation: greedy generation over a source, with the alignment of each word."""

from dataclasses import dataclass

import numpy as np
from attention_proto.attention.v1 import attention_pb2 as pb

from attention_client.api.aio import AsyncAttentionClient
from attention_client.api.client import AttentionClient
from attention_client.api.generate import GeneratedToken, Generation, Turns, joined
from attention_client.errors import InvalidRequest
from attention_client.result import Array
from attention_client.wire.call import run, run_async


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
        return joined(self.words).strip()

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

    An encoder-decoder with a vocabulary translates token after token, the most probable one each, behind
    `text.start_token`; one of `text.end_tokens` ends the translation. That is the greedy search of `transformers` for a
    model with a generation config that forces and forbids no tokens.

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
    """Generate the words, each with the weights [H, S] of its row, and read the translation."""
    generation = Generation(model, memory_text=text, outputs=["weights"], version=version, timeout=timeout)
    steps: list[GeneratedToken] = []
    while not generation.is_over:
        steps.append((yield from generation.step()))
    served, source = generation.model, generation.source
    assert served is not None
    assert source is not None
    spoken = [step for step in steps if step.ends != "end"]
    return Translation(
        model=model,
        version=served.version,
        text=text,
        words=tuple(step.token for step in spoken),
        probabilities=tuple(step.probability for step in spoken),
        memory_tokens=source.tokens,
        weights=np.stack([step.result.weights[:, 0] for step in steps])[: len(spoken)],
        head=_aligning_head(served.manifest),
        complete=len(spoken) < len(steps),
    )


def _aligning_head(manifest: pb.Manifest) -> int | None:
    """Return the head that the record of the training names, when the model has it."""
    head = int(manifest.training.figures.get("head", -1))
    return head if 0 <= head < manifest.layers[-1].heads else None
