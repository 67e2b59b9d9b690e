"""The recreation of memories that a server no longer keeps.

A memory lives in one server. Where calls are balanced over several, a call may reach a server that never had it; it is
created there too, so that in the end each server has it.
"""

import re
from collections.abc import Sequence as Items
from dataclasses import replace

from attention_proto.attention.v1 import attention_pb2 as pb

from attention_client.errors import NotFound
from attention_client.inputs import Item, Sequence
from attention_client.memory import Creation, Extension, Memory
from attention_client.result import AttendResult

_ROUNDS = 3
_LEAST = pb.OutputSpec(name="k", rows=[-1])  # of a sequence that is sent for its memory
_FIELD = re.compile(r"inputs\[(\d+)\]\.memory")


class MemoriesOfRequest:
    """The memories that one request of Attend names, with a count of the rounds of recreation."""

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

    def recreations(self, error: NotFound) -> list[tuple[Memory, list[Creation]]]:
        """Return the memories to create before the call is repeated, in this order, each with its requests.

        Where one server answers, one round suffices. Several servers are asked in turn. If each round created a memory
        once, then of two servers the first would get every creation, and the second every repetition. So round r
        creates it r times: among up to six servers asked in turn, one of three rounds succeeds.

        Raises:
            NotFound: the error itself, where it is not about a memory that can be created again, or rounds are over.
        """
        field = _FIELD.fullmatch(error.field or "")
        missing = self._memories.get(int(field[1])) if field else None
        # A server that lost one memory has, as a rule, lost all.
        creations = {memory: self._creations(memory) for memory in self._memories.values()}
        if missing is None or not creations[missing] or self._rounds == _ROUNDS:
            raise error
        self._rounds += 1
        return [(memory, requests) for memory, requests in creations.items() if requests] * self._rounds

    def extended(self, results: list[AttendResult]) -> list[AttendResult]:
        """Return results with the names of the keys of prefixes, and with memories that can be created again."""
        return [
            self._told(i, result) if item.memory or item.extend else result
            for i, (item, result) in enumerate(zip(self._request.inputs, results, strict=True))
        ]

    def _told(self, position: int, result: AttendResult) -> AttendResult:
        before, sequence = self._memories.get(position), self._request.inputs[position]
        if before is not None and before.prefix_length:
            prefix = before.tokens[before.source_length :]
            keys = result.key_tokens if before.source_length else prefix + result.tokens
            result = replace(result, prefix_tokens=prefix, key_tokens=keys)
        if result.memory is None or (sequence.memory and before is None):  # an id alone cannot be created again
            return result
        request = pb.AttendRequest(model=self._request.model, inputs=[sequence], outputs=[_LEAST])
        return replace(result, memory=result.memory.after(Extension(before, request, result.tokens)))

    def _creations(self, memory: Memory) -> list[Creation]:
        return memory.creations(self._request.model, self._request.version)
