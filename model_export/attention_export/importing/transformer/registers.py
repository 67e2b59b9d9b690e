"""Registers: the names under which tensors are carried over segments."""

from collections.abc import Hashable, Mapping
from typing import NamedTuple, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Lifetime(NamedTuple):
    """The segment that makes a tensor, and the last one that takes it."""

    made: int
    last: int


def allocate(lifetimes: Mapping[Key, Lifetime]) -> dict[Key, int]:
    """Give each tensor a register: the lowest that is free from the segment that makes it to the last that takes it.

    A register whose tensor is taken for the last time is free for a result of the same segment: so equal layers
    take and make the same names.
    """
    registers: dict[Key, int] = {}
    busy: dict[int, int] = {}  # by register: the last segment that takes its tensor
    for key, life in sorted(lifetimes.items(), key=lambda item: item[1].made):
        register = next(n for n in range(len(busy) + 1) if busy.get(n, -1) <= life.made)
        registers[key], busy[register] = register, life.last
    return registers
