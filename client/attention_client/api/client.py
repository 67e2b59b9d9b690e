"""The blocking client. More than half of its lines are signatures with documentation."""

from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Literal, Self, Unpack, overload

import grpc
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.masks import Causal
from attention_proto.stages import DataType
from attention_proto.text import Truncate
from numpy.typing import ArrayLike

from attention_client.api.base import BaseClient
from attention_client.api.generate import GeneratedToken, Generation
from attention_client.errors import AttentionError
from attention_client.inputs import Output, Sample, Sequence, StreamOptions
from attention_client.keywords import suggests_keywords
from attention_client.memory import Memory
from attention_client.result import Ablation, AttendResult, Tokenization
from attention_client.streaming.blocking import BlockingStream
from attention_client.wire import channel
from attention_client.wire.call import run, send
from attention_client.wire.request import several


@suggests_keywords
class AttentionClient(BaseClient):
    """A client of one Attention Service, or of several replicas; use it as a context manager, from any thread.

    Every call, of any size, has a deadline, and is repeated while the service is unavailable. A failed call raises
    an error of `attention_client.errors`.

    Args:
        target: `HOST:PORT`, where calls are balanced over all addresses the name resolves to, or several IPv4 addresses
            `A:PORT,B:PORT`.
        timeout: seconds within which a call has to be answered, its repetitions included.
        token: the caller's token, where the server asks for one. Without `credentials` it is not encrypted.
        credentials: of TLS, from `grpc.ssl_channel_credentials()`; None: without TLS.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        timeout: float = 30.0,
        token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        uri = channel.uri(target)
        self._channel = (
            grpc.secure_channel(uri, credentials, channel.OPTIONS)
            if credentials
            else grpc.insecure_channel(uri, channel.OPTIONS)
        )
        super().__init__(self._channel, timeout, token)

    def attend(
        self,
        model: str,
        *,
        query: ArrayLike | None = None,
        key: ArrayLike | None = None,
        value: ArrayLike | None = None,
        text: str | None = None,
        memory_text: str | None = None,
        token_ids: ArrayLike | None = None,
        memory_token_ids: ArrayLike | None = None,
        text_pair: str | None = None,
        truncate: Truncate = "none",
        memory: Memory | str | None = None,
        extend: bool = False,
        causal: Causal = "none",
        window: tuple[int, int] | None = None,
        allowed: ArrayLike | None = None,
        bias: ArrayLike | None = None,
        mask_layers: Iterable[str] = (),
        outputs: Iterable[Output] = (),
        version: int = 0,
        token_offsets: bool = False,
        ablate: Iterable[Ablation | Mapping[str, Any]] = (),
        score_temperature: float | None = None,
        timeout: float | None = None,
    ) -> AttendResult:
        """Attend from each position of one sequence.

        Args:
            model: its name.
            query: [T, query width], float32 or float16; all else is sent as float32. Or `text` or `token_ids`.
            key: [S, key width]; the query when absent, but for a cross-attention model, which needs a memory.
            value: [S, value width]; the key when absent.
            text: the query as text, for a text model.
            memory_text: the memory as text, for a text model that attends to a second sequence; in place of `key`.
            token_ids: the query as ids of tokens, integers [T], special tokens included; in place of `text`.
            memory_token_ids: the memory as ids of tokens, integers [S]; in place of `memory_text`.
            text_pair: the second text of a pair, of which `text` is the first, for a model that takes pairs.
            truncate: `right` or `left`, the end at which tokens of a text are dropped that are more than the model
                reads; `none` has such a text refused.
            memory: a memory that the server keeps, from `create_memory`, or its id; in place of `key`. When the server
                no longer has a `Memory`, the call creates it again, for the version that the call asks for, and is
                repeated; an id alone raises NotFound.
            extend: keeps the sequence's own keys and values behind those of the memory, which stays as it is; `memory`
                of the result is a new one of both. For decoders, and for targets over a kept source.
            causal: `top_left` or `bottom_right` hides the future, lined up at the first or the last position.
            window: (left, right), the farthest keys a query may attend to, inclusive; -1 is unbounded.
            allowed: bool, broadcastable to [H, T, S]; true = may attend.
            bias: broadcastable to [H, T, S], added to the scores; -inf hides a key.
            mask_layers: the layers that these four are for, by the names that outputs take; all when empty.
            outputs: the outputs to send back: names, `OutputSpec`s or dicts of its fields. Empty: `output`, and
                `predictions` where the model has a head.
            version: of the model; 0 is its default.
            token_offsets: whether to return the place of each token in its text.
            ablate: heads that are switched off, `Ablation`s or dicts of its fields.
            score_temperature: divides the masked scores before the softmax; above 0.
            timeout: seconds, in place of the client's.

        Raises:
            InvalidRequest: the model cannot take it; `field` names the part.
            NotFound: there is no such model, version or memory.
            TooLarge: a limit of the server.
            Unavailable: no server answered, or the server is full or stopping.
            DeadlineExceeded: no answer in time.
        """
        sequence = Sequence(
            query=query,
            key=key,
            value=value,
            text=text,
            memory_text=memory_text,
            token_ids=token_ids,
            memory_token_ids=memory_token_ids,
            text_pair=text_pair,
            truncate=truncate,
            memory=memory,
            extend=extend,
            causal=causal,
            window=window,
            allowed=allowed,
            bias=bias,
            mask_layers=mask_layers,
        )
        return run(
            self._batch_flow(model, [sequence], outputs, version, token_offsets, timeout, ablate, score_temperature),
            send,
        )[0]

    def attend_batch(
        self,
        model: str,
        sequences: Iterable[Sequence | str | ArrayLike],
        *,
        outputs: Iterable[Output] = (),
        version: int = 0,
        token_offsets: bool = False,
        ablate: Iterable[Ablation | Mapping[str, Any]] = (),
        score_temperature: float | None = None,
        timeout: float | None = None,
    ) -> list[AttendResult]:
        """Attend over several sequences, of any lengths, in one message; return a result for each, in order.

        Args:
            model: its name.
            sequences: each a `Sequence`, a text, or a query [T, query width].
            outputs: the outputs to send back for each, as in `attend`.
            version: of the model; 0 is its default.
            token_offsets: whether to return the place of each token in its text.
            ablate: heads that are switched off, `Ablation`s or dicts of its fields.
            score_temperature: divides the masked scores before the softmax; above 0.
            timeout: seconds, in place of the client's.

        Raises:
            AttentionError: as for `attend`; one bad sequence fails the call.
        """
        return run(
            self._batch_flow(model, sequences, outputs, version, token_offsets, timeout, ablate, score_temperature),
            send,
        )

    @overload
    def attend_many(
        self,
        model: str,
        sequences: Iterable[Sequence | str | ArrayLike],
        *,
        return_exceptions: Literal[False] = False,
        **options: Unpack[StreamOptions],
    ) -> Iterator[AttendResult]: ...

    @overload
    def attend_many(
        self,
        model: str,
        sequences: Iterable[Sequence | str | ArrayLike],
        *,
        return_exceptions: bool,
        **options: Unpack[StreamOptions],
    ) -> Iterator[AttendResult | AttentionError]: ...

    def attend_many(
        self,
        model: str,
        sequences: Iterable[Sequence | str | ArrayLike],
        *,
        outputs: Iterable[Output] = (),
        version: int = 0,
        token_offsets: bool = False,
        ablate: Iterable[Ablation | Mapping[str, Any]] = (),
        score_temperature: float | None = None,
        timeout: float | None = None,
        return_exceptions: bool = False,
    ) -> Iterator[AttendResult | AttentionError]:
        """Attend over any number of sequences, of any lengths, on a stream; yield a result for each, in order.

        Messages in flight are bounded by count and bytes. A stream that breaks is opened anew and continues where it
        broke. Another thread iterates over the sequences, as there is room in flight.

        Args:
            model: its name.
            sequences: each a `Sequence`, a text, or a query [T, query width].
            outputs: the outputs to send back for each, as in `attend`.
            version: of the model; 0 is its default.
            token_offsets: whether to return the place of each token in its text.
            ablate: heads that are switched off, `Ablation`s or dicts of its fields.
            score_temperature: divides the masked scores before the softmax; above 0.
            timeout: seconds to wait for the next answer, in place of the client's.
            return_exceptions: whether a bad sequence yields its error in its position; else the error is raised, and
                the stream ends.

        Raises:
            AttentionError: as for `attend`.
        """
        plan = self._stream_plan(
            model, outputs, version, token_offsets, timeout, return_exceptions, ablate, score_temperature
        )
        yield from BlockingStream(self._open_stream, plan).answers(several(sequences))

    def generate(
        self,
        model: str,
        text: str | None = None,
        *,
        token_ids: ArrayLike | None = None,
        memory_text: str | None = None,
        memory: Memory | None = None,
        tokens: int | None = 40,
        outputs: Iterable[Output] = (),
        sample: Sample | Mapping[str, Any] | None = None,
        top: int = 0,
        stop: Iterable[str] = (),
        version: int = 0,
        timeout: float | None = None,
    ) -> Iterator[GeneratedToken]:
        """Go on with a text; yield each token as it comes, with the outputs of the row that it was predicted from.

        Each token is one call of one row behind a memory of everything before it. Where the server no longer has the
        memory, it is created again from the tokens so far, and the same tokens follow.

        Args:
            model: a decoder or an encoder-decoder with a vocabulary, or a model with the next words for labels.
            text: the prompt; of an encoder-decoder the target so far.
            token_ids: in place of `text`, special tokens included.
            memory_text: the source of an encoder-decoder.
            memory: a kept prefix that the text goes on behind, or a kept source in place of `memory_text`.
            tokens: the most tokens to generate; None for as many as the model reads.
            outputs: further outputs, of each token's row alone where no rows are named: `pairs`, `top_k` and so on.
            sample: draws tokens, step i with the seed `seed + i`; the most probable ones when absent.
            top: the number of most probable tokens to return with each.
            stop: strings that end the text.
            version: of the model; 0 is its default, and every token is by one version.
            timeout: seconds for each token, in place of the client's.

        Raises:
            InvalidRequest: the model does not go on with a text, or not with this one.
            AttentionError: as for `attend`.
        """
        generation = Generation(
            model,
            text=text,
            token_ids=token_ids,
            memory_text=memory_text,
            memory=memory,
            tokens=tokens,
            outputs=outputs,
            sample=sample,
            top=top,
            stop=stop,
            version=version,
            timeout=timeout,
        )
        while not generation.is_over:
            yield run(generation.step(), lambda method: method(self))

    def create_memory(
        self,
        model: str,
        *,
        key: ArrayLike | None = None,
        value: ArrayLike | None = None,
        memory_text: str | None = None,
        memory_token_ids: ArrayLike | None = None,
        truncate: Truncate = "none",
        version: int = 0,
        ttl: float | None = None,
        pinned: bool = False,
        data_type: DataType = "FP32",
        timeout: float | None = None,
    ) -> Memory:
        """Project a key and value sequence on the server and keep it there, for any number of later queries.

        A memory lives in the one server that answers. Where calls are balanced over several, a call that names it and
        reaches another server creates it there too, so that in the end each has it.

        Args:
            model: its name.
            key: [S, key width]. Or `memory_text` or `memory_token_ids`.
            value: [S, value width]; the key when absent.
            memory_text: the sequence as text, for a text model; in place of `key`. Of a decoder, a prefix that later
                sequences go on behind.
            memory_token_ids: the sequence as ids of tokens, integers [S], special tokens included.
            truncate: `right` or `left`, the end at which tokens of `memory_text` are dropped that are more than the
                model reads; `none` has such a text refused.
            version: of the model; 0 is its default.
            ttl: seconds to keep it after its last use; the server's choice when absent.
            pinned: whether the server never evicts it to make room, within the caller's share; the time to
                live holds.
            data_type: `FP32`, or `FP16`, which takes half the bytes; `max_storage_error` has the error.
            timeout: seconds, in place of the client's.

        Raises:
            InvalidRequest: the model cannot take it; `field` names the part.
            NotFound: there is no such model or version.
            TooLarge: it is larger than the caller's share of the server's budget; the message has the bytes that fit.
            AttentionError: as for `attend`.
        """
        source = (key, value, memory_text, memory_token_ids, truncate)
        flow = self._create_memory_flow(model, *source, version, ttl, pinned, data_type, timeout)
        return run(flow, send)

    def tokenize(
        self,
        model: str,
        texts: Iterable[str | tuple[str, str]],
        *,
        truncate: Truncate = "none",
        memory: bool = False,
        version: int = 0,
        timeout: float | None = None,
    ) -> list[Tokenization]:
        """Return the tokens of texts, as read by a model.

        Args:
            model: its name.
            texts: each a text, or a pair of texts for a model that takes pairs.
            truncate: `right` or `left`, the end at which tokens are dropped that are more than the model reads; `none`
                has such a text refused.
            memory: whether the texts are memory texts, which a model may read by another tokenizer.
            version: of the model; 0 is its default.
            timeout: seconds, in place of the client's.

        Raises:
            InvalidRequest: the model reads no such text; `field` names it.
            NotFound: there is no such model or version.
            AttentionError: as for `attend`.
        """
        flow = self._tokenize_flow(model, texts, truncate, memory, version, timeout)
        return run(flow, send)

    def memories(self, model: str, *, timeout: float | None = None) -> list[Memory]:
        """Return the caller's memories of a model, newest first, of the one server that answers.

        Args:
            model: its name.
            timeout: seconds, in place of the client's.

        Raises:
            NotFound: there is no such model.
            AttentionError: as for `attend`.
        """
        return run(self._memories_flow(model, timeout), send)

    def delete_memory(self, memory: Memory, *, timeout: float | None = None) -> None:
        """Delete a memory from the one server that answers.

        Args:
            memory: from `create_memory` or `memories`.
            timeout: seconds, in place of the client's.

        Raises:
            NotFound: the server no longer has it.
            AttentionError: as for `attend`.
        """
        run(self._delete_memory_flow(memory, timeout), send)

    def models(self, *, timeout: float | None = None) -> list[pb.Model]:
        """Return the served models, each at its default version, by name; the contract describes a Model.

        Args:
            timeout: seconds, in place of the client's.

        Raises:
            AttentionError: as for `attend`.
        """
        return run(self._models_flow(timeout), send)

    def model(self, name: str, version: int = 0, *, timeout: float | None = None) -> pb.Model:
        """Return one model with its manifest.

        Args:
            name: the model's.
            version: of the model; 0 is its default.
            timeout: seconds, in place of the client's.

        Raises:
            NotFound: there is no such model or version.
            AttentionError: as for `attend`.
        """
        return run(self._model_flow(name, version, timeout), send)

    def close(self) -> None:
        """Close the connection and cancel the calls in progress."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open_stream(self, messages: Iterator[pb.AttendStreamRequest]) -> Any:
        return self._attend_stream(messages, metadata=channel.traced(self._metadata))
