"""The recreation of memories that a server no longer keeps.

A memory lives in one server. Where calls are balanced over several, a call may reach a server that never had it; it is
created there too, so that in the end each server has it.
"""

import re
from collections.abc import Sequence as Items

from attention_proto.attention.v1 import attention_pb2 as pb

from attention_client.errors import NotFound
from attention_client.inputs import Item, Sequence
from attention_client.memory import Memory

_ROUNDS = 3
_FIELD = re.compile(r"inputs\[(\d+)\]\.memory")


class MemoriesOfRequest:
    """The memories that one request of Attend names, with a count of the rounds of their recreation."""

    def __init__(self, request: pb.AttendRequest, sequences: Items[Item]) -> None:
        self._request = request
        self._rounds = 0
        self._memories = {
            position: item.memory
            for position, item in enumerate(sequences)
            if isinstance(item, Sequence) and isinstance(item.memory, Memory)
        }

    def write_ids(self) -> None:
        """Write the current ids of the memories into the request: a recreated memory may have a new one."""
        for position, memory in self._memories.items():
            self._request.inputs[position].memory = memory.id

    def recreations(self, error: NotFound) -> list[tuple[Memory, pb.CreateMemoryRequest]]:
        """Return the memories to create before the call is repeated, in this order, each with its request.

        Where one server answers, one round suffices. Several servers are asked in turn. If each round created a memory
        once, then of two servers the first would get every creation, and the second every repetition. So round r
        creates it r times: among up to six servers asked in turn, one of three rounds succeeds.

        Raises:
            NotFound: the error itself, where it is not about a memory that can be created again, or rounds are over.
        """
        field = _FIELD.fullmatch(error.field or "")
        missing = self._memories.get(int(field[1])) if field else None
        # A server that lost one memory has, as a rule, lost all.
        creations = {memory: self._creation(memory) for memory in self._memories.values()}
        if missing is None or creations[missing] is None or self._rounds == _ROUNDS:
            raise error
        self._rounds += 1
        return [(memory, creation) for memory, creation in creations.items() if creation is not None] * self._rounds

    def _creation(self, memory: Memory) -> pb.CreateMemoryRequest | None:
        return memory.creation(self._request.model, self._request.version)
