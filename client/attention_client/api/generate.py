"""Generation: token after token, each a step of one row behind a memory that the step before extended."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import methodcaller
from typing import Any, Literal, TypeVar, cast

from attention_proto.attention.v1 import attention_pb2 as pb
from numpy.typing import ArrayLike

from attention_client.errors import InvalidRequest
from attention_client.inputs import Output, OutputSpec, Sample
from attention_client.memory import Memory
from attention_client.result import AttendResult, Candidate, Prediction
from attention_client.wire.call import Flow

T = TypeVar("T")
Turns = Flow[Callable[[Any], Any], T]  # each step calls a method of the client that it is given
Reason = Literal["", "end", "stop", "length"]
MAX_TOKENS = 512  # of a text, where the model names no bound


@dataclass(frozen=True, eq=False)
class GeneratedToken:
    """One token of a generation, with the answer that it was read from.

    Attributes:
        id: of the token; of a model that predicts words, the position of the word among its labels.
        token: as it stands in a text.
        probability: given everything before it, in 0..1; of a draw, that of the token drawn.
        top: the most probable tokens, in descending order; empty unless `top` was asked for.
        text: the text generated so far, without an end token, and up to a stop string.
        ends: why the generation is over: `end` (this is an end token), `stop` (a stop string), `length` (as many tokens
            as asked for, or as the model reads); empty where it goes on.
        result: of the last row: the outputs asked for, the names of its keys, and the memory of everything before.
    """

    id: int
    token: str
    probability: float
    top: tuple[Candidate, ...]
    text: str
    ends: Reason
    result: AttendResult


def joined(tokens: Sequence[str]) -> str:
    """Return tokens as a text: unchanged where a token begins with a space; else with spaces between."""
    return ("" if any(token.startswith(" ") for token in tokens) else " ").join(tokens)


@dataclass(frozen=True)
class Speech:
    """How a model predicts a text.

    Attributes:
        predictor: the name of the predictor of the next token.
        ends_with: ids of the tokens that end a text.
        by_words: whether the model predicts words, which are sent as text, and a label in brackets ends it.
        has_source: whether a text attends to a source, which is kept before the first step.
    """

    predictor: str
    ends_with: frozenset[int] = frozenset()
    by_words: bool = False
    has_source: bool = False

    def ends(self, prediction: Prediction) -> bool:
        """Return whether a prediction is the end of the text."""
        return is_mark(prediction.label) if self.by_words else prediction.id in self.ends_with


class Generation:
    """A text that is generated, one flow a token.

    Args:
        model: its name.
        text, token_ids: a prompt, or the target so far of an encoder-decoder.
        memory_text: the source of an encoder-decoder.
        memory: a kept prefix or source, in place of `memory_text`.
        tokens: the most tokens to generate; None for as many as the model reads.
        outputs: further outputs of each token's row.
        sample: how tokens are drawn; None for the most probable ones.
        top: the number of most probable tokens to return for each.
        stop: strings that end the text.
        version: of the model; 0 is its default, and every token is by one version.
        timeout: seconds for each call, in place of the client's.

    Attributes:
        model: as served; None before the first token.
        source: the kept source of an encoder-decoder.
        memory: the memory that the next step goes on behind.
        is_over: whether the last token was generated.

    Raises:
        InvalidRequest: the outputs contain predictions.
    """

    def __init__(
        self,
        model: str,
        *,
        text: str | None = None,
        token_ids: ArrayLike | None = None,
        memory_text: str | None = None,
        memory: Memory | None = None,
        tokens: int | None = None,
        outputs: Iterable[Output] = (),
        sample: Sample | Mapping[str, Any] | None = None,
        top: int = 0,
        stop: Iterable[str] = (),
        version: int = 0,
        timeout: float | None = None,
    ) -> None:
        self._name, self._version, self._timeout = model, version, timeout
        self._sent: dict[str, Any] = {"token_ids": token_ids} if token_ids is not None else {"text": text}
        self._memory_text = memory_text
        self._left = tokens
        self._outputs = [_of_last_row(output, f"outputs[{i}]") for i, output in enumerate(outputs)]
        self._sample = Sample(**sample) if isinstance(sample, Mapping) else sample
        self._top = top
        self._stop = tuple(filter(None, (stop,) if isinstance(stop, str) else stop))
        self._said: list[str] = []
        self.model: pb.Model | None = None
        self.source = self.memory = memory
        self.is_over = tokens == 0

    def step(self) -> Turns[GeneratedToken]:
        """Generate one token; the first step asks for the model too, and keeps the source."""
        if self.model is None:
            yield from self._begin()
        assert self.model is not None
        speech = self._speech
        result = yield methodcaller(
            "attend",
            self._name,
            version=self.model.version,
            **self._sent,
            memory=self.memory,
            outputs=[*self._outputs, self._predictions()],
            timeout=self._timeout,
            **({} if speech.by_words else {"extend": True}),
        )
        said = next(each for each in result.predictions if each.name == speech.predictor)
        is_end = speech.ends(said)
        if not is_end:
            self._said.append(said.label)
        text, is_stopped = self._text()
        self._left = None if self._left is None else self._left - 1
        ends: Reason = "end" if is_end else "stop" if is_stopped else "length" if self._is_full(result) else ""
        self.is_over = bool(ends)
        self._go_on(result, said)
        return GeneratedToken(said.id, said.label, said.probability, said.top, text, ends, result)

    def _begin(self) -> Turns[None]:
        self.model = yield methodcaller("model", self._name, self._version, timeout=self._timeout)
        assert self.model is not None
        self._speech = speech_of(self.model)
        if not self._speech.has_source:
            if self._memory_text is not None:
                raise InvalidRequest(f"{self._name!r} reads no source; give text", field="memory_text")
            if self._sent == {"text": None}:
                raise InvalidRequest("give the text to go on from, or token_ids", field="text")
            return
        if self._sent == {"text": None}:
            self._sent = {"text": ""}  # the start token alone
        if self._memory_text is not None:
            self.source = self.memory = yield methodcaller(
                "create_memory",
                self._name,
                memory_text=self._memory_text,
                version=self.model.version,
                timeout=self._timeout,
            )
        elif self.memory is None:
            raise InvalidRequest("give the source as memory_text, or a memory of it", field="memory_text")

    def _predictions(self) -> OutputSpec:
        sample = self._sample
        if sample is not None and sample.seed is not None:
            sample = replace(sample, seed=(sample.seed + len(self._said)) % 2**64)  # a draw of its own for each step
        return OutputSpec("predictions", top=self._top, sample=sample)

    def _go_on(self, result: AttendResult, said: Prediction) -> None:
        """Set the sequence of the next step."""
        if self._speech.by_words:
            self._sent = {"text": " ".join([*filter(None, [self._sent["text"]]), said.label])}
            return
        self._sent = {"token_ids": [said.id]}
        self.memory = result.memory

    def _text(self) -> tuple[str, bool]:
        """Return the text so far, up to a stop string, and whether there is one."""
        text = joined(self._said)
        begins = [begin for each in self._stop if (begin := text.find(each)) >= 0]
        return text[: min(begins, default=None)].strip(), bool(begins)  # a stop string may be white space

    def _is_full(self, result: AttendResult) -> bool:
        """Return whether no further token was asked for, or none can be read behind this one."""
        assert self.model is not None
        positions = result.memory.prefix_length if result.memory is not None else len(result.tokens)
        return self._left == 0 or positions >= (self.model.manifest.text.max_tokens or MAX_TOKENS)


def speech_of(model: pb.Model) -> Speech:
    """Return how a model predicts a text.

    Raises:
        InvalidRequest: it does not.
    """
    text = model.manifest.text
    for predictor in model.manifest.predictors:
        if predictor.rows != pb.Predictor.ROWS_LAST:
            continue
        if any(map(is_mark, predictor.labels)):
            return Speech(predictor.name, by_words=True, has_source=True)
        if predictor.vocabulary:
            return Speech(predictor.name, frozenset(text.end_tokens), has_source=text.HasField("start_token"))
    raise InvalidRequest(
        f"{model.name!r} does not translate or go on with a text: it has no predictor that reads the next word from "
        "the last row, with a vocabulary, or with a label for the end, as [END]",
        field="model",
    )


def is_mark(label: str) -> bool:
    """Return whether a label is no word of a text."""
    return label.startswith("[") and label.endswith("]")


def _of_last_row(output: Output, field: str) -> Output:
    """Return an output of the last row alone, where it names no rows.

    Raises:
        InvalidRequest: it is of predictions.
    """
    if isinstance(output, pb.OutputSpec):
        copied = pb.OutputSpec()
        copied.CopyFrom(output)
        if not copied.rows and not copied.pool:
            copied.rows.append(-1)
        name, spec = output.name, cast("Output", copied)
    else:
        named = {"name": output} if isinstance(output, str) else output
        given = named if isinstance(named, Mapping) else vars(named)
        name = given.get("name", "")
        spec = output if given.get("rows") or given.get("pool") else {**given, "rows": [-1]}
    if name == "predictions":
        raise InvalidRequest("are asked for by the generation itself; give top and sample", field=field)
    return spec
