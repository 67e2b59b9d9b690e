"""What both streams share: packs of sequences, and what is known of those in flight. No thread and no task is here."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from attention_proto.attention.v1 import attention_pb2 as pb

from attention_client.errors import AttentionError, Unavailable
from attention_client.inputs import Item, Sequence
from attention_client.result import AttendResult
from attention_client.wire.request import tensor_bytes
from attention_client.wire.response import read

PACK_SEQUENCES = 32
PACK_BYTES = 1024 * 1024
IN_FLIGHT = 32  # messages
IN_FLIGHT_BYTES = 32 * 1024 * 1024
ATTEMPTS = 5  # without an answer between them
FIRST_BACKOFF = 0.1  # seconds; doubles

Answer = AttendResult | AttentionError
Build = Callable[[list[Item]], pb.AttendRequest]


@dataclass
class Pack:
    """Some sequences that travel in one message.

    Attributes:
        id: its place among all.
        items: the sequences.
        request: their message; None when they have no form on the wire.
        fault: what their source raised in place of the next.
        size: bytes of the message.
    """

    id: int
    items: list[Item] = field(default_factory=list)
    request: pb.AttendRequest | None = None
    fault: BaseException | None = None
    size: int = 0

    @property
    def message(self) -> pb.AttendStreamRequest:
        """What is sent for it."""
        return pb.AttendStreamRequest(id=str(self.id), request=self.request)

    def results(self, answer: pb.AttendStreamResponse | None) -> list[AttendResult] | None:
        """Return the results; None where there is not one for each: each by itself tells what is wrong, and with which.

        One sequence is at fault, or its memory is gone.
        """
        if self.request is None or answer is None or not answer.HasField("response"):
            return None
        if len(answer.response.results) != len(self.items):  # a server of before there was `lengths`
            return None
        return read(self.request, answer.response)


class Packer:
    """Puts sequences into packs, as they come.

    Args:
        build: makes the message of some sequences; raises InvalidRequest.
    """

    def __init__(self, build: Build) -> None:
        self._build = build
        self._pack = Pack(0)

    def add(self, item: Item) -> Pack | None:
        """Take one more; return the pack that is full with it, if one is."""
        self._pack.items.append(item)
        self._pack.size += _size(item)
        full = len(self._pack.items) == PACK_SEQUENCES or self._pack.size >= PACK_BYTES
        return self._built() if full else None

    def rest(self, fault: BaseException | None = None) -> Iterator[Pack]:
        """Yield what was begun, and then a pack that is empty: what the source raised, or how many packs there are."""
        if self._pack.items:
            yield self._built()
        yield Pack(self._pack.id, fault=fault)

    def _built(self) -> Pack:
        pack, self._pack = self._pack, Pack(self._pack.id + 1)
        try:
            pack.request = self._build(pack.items)
        except AttentionError:
            return pack  # each is asked for by itself, and the one at fault says so
        pack.size = tensor_bytes(pack.request)
        return pack


class Ledger:
    """What was sent, what was answered, and whose turn it is."""

    def __init__(self) -> None:
        self.sent: dict[int, Pack] = {}
        self._answered: dict[int, tuple[Pack, pb.AttendStreamResponse | None]] = {}
        self._count: int | None = None
        self._failures = 0
        self._position = 0

    @property
    def complete(self) -> bool:
        """Whether all there are have been handed out."""
        return self._position == self._count

    def next(self) -> tuple[Pack, pb.AttendStreamResponse | None] | None:
        """Hand out the next pack in order and its answer, if that has come."""
        found = self._answered.pop(self._position, None)
        self._position += found is not None
        return found

    def take_unsent(self, pack: Pack) -> None:
        """Take in a pack that needs no message: one without a form on the wire, a fault, or the end."""
        if pack.items or pack.fault is not None:
            self._answered[pack.id] = (pack, None)
        else:
            self._count = pack.id

    def take_answer(self, answer: pb.AttendStreamResponse) -> None:
        """Take in an answer."""
        self._failures = 0
        pack = self.sent.pop(int(answer.id), None)
        if pack is not None:  # else it was answered twice, before and after a break
            self._answered[pack.id] = (pack, answer)

    def pause(self, error: AttentionError, most: float) -> float:
        """Return how many seconds to wait before the stream is opened anew, no more than `most`.

        Raises:
            AttentionError: the error itself, where that does not help.
        """
        self._failures += 1
        if not isinstance(error, Unavailable) or self._failures == ATTEMPTS:
            raise error
        return min(error.retry_after or FIRST_BACKOFF * 2 ** (self._failures - 1), most)


def _size(item: Item) -> int:
    """Return about how many bytes a sequence has on the wire."""
    if isinstance(item, Sequence):
        arrays = (item.query, item.key, item.value, item.allowed, item.bias)
        return sum(_size(each) for each in arrays if each is not None)
    return getattr(item, "nbytes", 0)
