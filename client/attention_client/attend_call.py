"""One call of Attend, and what is repeated of it; both clients do it alike, each with its own way to wait.

Arrays travel packed, one behind the other. An error names those by their places in what was sent, which are not the
caller's: then they are sent again, one by one.

A memory lives in one server. Of several, the one that answers may never have had it: there it is created too, so that
in the end each has it.
"""

import re
import time
from collections.abc import Iterable

from attention_proto.attention.v1 import attention_pb2 as pb
from numpy.typing import ArrayLike

from attention_client.errors import AttentionError, NotFound
from attention_client.memory import Memory
from attention_client.request import Output, Sequence, attend_request, listed, packed_request
from attention_client.result import AttendResult, read

_ROUNDS = 3
_FIELD = re.compile(r"inputs\[(\d+)\]\.memory")


class AttendCall:
    """One call of Attend with all its repetitions, for which there are `seconds`.

    Raises:
        InvalidRequest: a value has no form on the wire.
    """

    def __init__(
        self,
        model: str,
        sequences: Iterable[Sequence | str | ArrayLike],
        outputs: Iterable[Output],
        version: int,
        token_offsets: bool,
        seconds: float,
    ) -> None:
        self._sequences = list(sequences)
        self._asked = (model, self._sequences, listed(outputs), version, token_offsets)
        self._deadline = time.monotonic() + seconds
        self._rounds = 0
        self._memories = {
            position: item.memory
            for position, item in enumerate(self._sequences)
            if isinstance(item, Sequence) and isinstance(item.memory, Memory)
        }
        self._request = (attend_request if self._memories else packed_request)(*self._asked)

    @property
    def request(self) -> pb.AttendRequest:
        """What to send now: its memories by the ids that they have by now."""
        for position, memory in self._memories.items():
            self._request.inputs[position].memory = memory.id
        return self._request

    @property
    def seconds_left(self) -> float:
        """How long the next message may take; below 0 when time is over, which gRPC then says."""
        return self._deadline - time.monotonic()

    def results(self, response: pb.AttendResponse) -> list[AttendResult] | None:
        """Return a result for each sequence; None where the call is to be repeated, for its server knows no packing."""
        if self._is_packed and len(response.results) != len(self._sequences):
            self._unpack()
            return None
        return read(self._request, response)

    def creations(self, error: AttentionError) -> list[tuple[Memory, pb.CreateMemoryRequest]]:
        """Return which memories to create, by which requests and in this order, before the call is repeated.

        Where one server answers, one round suffices. Several servers are asked in turn. If each round created a memory
        once, then of two servers one would get every creation and the other every repetition. So round r creates it r
        times: among up to six servers asked in turn, one of three rounds succeeds.

        Raises:
            AttentionError: the error itself, where to repeat the call does not help, or rounds are over.
        """
        if self._is_packed and (error.field or "").startswith("inputs["):
            self._unpack()
            return []
        field = _FIELD.fullmatch(error.field or "") if isinstance(error, NotFound) else None
        missing = self._memories.get(int(field[1])) if field else None
        # What lost one of them has, as a rule, lost them all.
        creations = {memory: self._creation(memory) for memory in self._memories.values()}
        if missing is None or creations[missing] is None or self._rounds == _ROUNDS:
            raise error
        self._rounds += 1
        return [(memory, creation) for memory, creation in creations.items() if creation is not None] * self._rounds

    @property
    def _is_packed(self) -> bool:
        return len(self._request.inputs) < len(self._sequences)

    def _unpack(self) -> None:
        self._request = attend_request(*self._asked)

    def _creation(self, memory: Memory) -> pb.CreateMemoryRequest | None:
        return memory.creation(self._request.model, self._request.version)
