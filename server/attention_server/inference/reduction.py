"""The reduction of one output, block by block."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from attention_server.domain.messages import OutputValue
from attention_server.inference.reading import Block, Part, Reading

Sums = list[NDArray[Any]]


class Reduction(ABC):
    """One output. Blocks may be added from several threads, each with sums of its own.

    Args:
        reading: the rows and heads.
    """

    def __init__(self, reading: Reading) -> None:
        self.reading = reading

    def sums(self) -> Sums:
        """Return sums of zero for the blocks of one strip."""
        return []

    def add(self, layer: int, block: Block, sums: Sums) -> None:
        """Reduce a block."""
        part = self.reading.part(layer, block)
        if part is not None:
            self._add(layer, part, sums)

    def close(self, strips: Sequence[Sums]) -> None:  # noqa: B027 # most outputs have no sums
        """Add up the sums of all strips of a layer, in order."""

    @abstractmethod
    def result(self) -> OutputValue:
        """Return the output."""

    @abstractmethod
    def _add(self, layer: int, part: Part, sums: Sums) -> None:
        """Reduce the part of a block that the output reads."""
