"""What a call does about memories that are gone; both clients do it alike, each with its own way to wait.

A memory lives in one server. Of several, the one that answers may never have had it: there it is created too, so that
in the end each has it.
"""

import re
import time
from collections.abc import Sequence as Items

from attention_proto.attention.v1 import attention_pb2 as pb
from numpy.typing import ArrayLike

from attention_client.errors import NotFound
from attention_client.inputs import Sequence
from attention_client.memory import Memory

_ROUNDS = 3
_FIELD = re.compile(r"inputs\[(\d+)\]\.memory")


class AttendCall:
    """One call of Attend with all its repetitions, for which there are `seconds`."""

    def __init__(self, request: pb.AttendRequest, sequences: Items[Sequence | str | ArrayLike], seconds: float) -> None:
        self._request = request
        self._deadline = time.monotonic() + seconds
        self._rounds = 0
        self._memories = {
            position: item.memory
            for position, item in enumerate(sequences)
            if isinstance(item, Sequence) and isinstance(item.memory, Memory)
        }

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

    def recreations(self, error: NotFound) -> list[tuple[Memory, pb.CreateMemoryRequest]]:
        """Return which memories to create, by which requests and in this order, before the call is repeated.

        Where one server answers, one round suffices. Several servers are asked in turn. If each round created a memory
        once, then of two servers one would get every creation and the other every repetition. So round r creates it r
        times: among up to six servers asked in turn, one of three rounds succeeds.

        Raises:
            NotFound: the error itself, where it is not about a memory that can be created again, or rounds are over.
        """
        field = _FIELD.fullmatch(error.field or "")
        missing = self._memories.get(int(field[1])) if field else None
        # What lost one of them has, as a rule, lost them all.
        creations = {memory: self._creation(memory) for memory in self._memories.values()}
        if missing is None or creations[missing] is None or self._rounds == _ROUNDS:
            raise error
        self._rounds += 1
        return [(memory, creation) for memory, creation in creations.items() if creation is not None] * self._rounds

    def _creation(self, memory: Memory) -> pb.CreateMemoryRequest | None:
        return memory.creation(self._request.model, self._request.version)
