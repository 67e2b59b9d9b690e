"""Batches: groups of sequences that travel in one message of a stream."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from attention_proto.attention.v1 import attention_pb2 as pb

from attention_client.inputs import Item, Sequence
from attention_client.result import AttendResult
from attention_client.wire.request import tensor_bytes
from attention_client.wire.response import read

BATCH_SEQUENCES = 32
BATCH_BYTES = 1024 * 1024

Build = Callable[[list[Item]], pb.AttendRequest]


@dataclass
class Batch:
    """Some sequences that travel in one message.

    Attributes:
        id: its position among all batches of the stream.
        items: the sequences; the last batch of a stream has none.
        request: the message of the sequences; None when it could not be built.
        error: the exception that the source raised in place of its next sequence.
        size: bytes of the message.
    """

    id: int
    items: list[Item] = field(default_factory=list)
    request: pb.AttendRequest | None = None
    error: BaseException | None = None
    size: int = 0

    @property
    def message(self) -> pb.AttendStreamRequest:
        """The message that the stream sends for it."""
        return pb.AttendStreamRequest(id=str(self.id), request=self.request)

    def results(self, response: pb.AttendStreamResponse | None) -> list[AttendResult] | None:
        """Return the results; None where there is not one for each sequence.

        Then one sequence is at fault, or its memory is gone. Each sequence sent by itself tells which.
        """
        if self.request is None or response is None or not response.HasField("response"):
            return None
        if len(response.response.results) != len(self.items):  # a server older than the field `lengths`
            return None
        return read(self.request, response.response)


class Batcher:
    """Collects the sequences of a stream into batches.

    Args:
        build: builds the message of some sequences; where it raises, the batch has no message.
    """

    def __init__(self, build: Build) -> None:
        self._build = build
        self._batch = Batch(0)

    def add(self, item: Item) -> Batch | None:
        """Add a sequence; return the batch when this fills it."""
        self._batch.items.append(item)
        self._batch.size += _size(item)
        full = len(self._batch.items) == BATCH_SEQUENCES or self._batch.size >= BATCH_BYTES
        return self._finished() if full else None

    def rest(self, error: BaseException | None = None) -> Iterator[Batch]:
        """Yield the last batch, unless it is empty, and then an empty one that ends the stream.

        Args:
            error: the exception that ended the source.
        """
        if self._batch.items:
            yield self._finished()
        yield Batch(self._batch.id, error=error)

    def _finished(self) -> Batch:
        batch, self._batch = self._batch, Batch(self._batch.id + 1)
        try:
            batch.request = self._build(batch.items)
        except Exception:  # noqa: BLE001 # an array-like's own; the stream raises it where it sends the sequence alone
            return batch  # without a message; its sequences are sent one by one
        batch.size = tensor_bytes(batch.request)
        return batch


def _size(item: Item) -> int:
    """Return the approximate size of a sequence on the wire, in bytes."""
    if isinstance(item, Sequence):
        arrays = (item.query, item.key, item.value, item.allowed, item.bias)
        return sum(_size(each) for each in arrays if each is not None)
    return getattr(item, "nbytes", 0)
