"""The protocol of an engine, of its graphs and of a run. No inference library is imported here."""

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol, TypeVar

from attention_server.domain.messages import Array

S = TypeVar("S")
T = TypeVar("T")
Shape = tuple[int | str | None, ...]  # a dimension that varies is a name or None
Device = Literal["auto", "cpu", "cuda"]
LEAST_ROWS = 128  # in a block of a sequence: a smaller block is not worth a hand-over to another thread


class DeviceError(RuntimeError):
    """The configured device is missing."""


class IdleSlots(Protocol):
    """Slots that a run may borrow while no job waits."""

    @property
    def idle_slots(self) -> int:
        """The number of idle slots at this moment."""
        ...

    def map(self, each: Callable[[S], T], items: Sequence[S]) -> list[T]:
        """Apply a function to each item, in this thread and in idle slots; return the results in order."""
        ...


class Run:
    """One computation of one or more graphs, which another thread may end.

    Args:
        helpers: the idle slots that may help; None for none.
        callers: how many wait for it. When all have left it ends, between two nodes of a graph.
    """

    def __init__(self, helpers: IdleSlots | None = None, callers: int = 1) -> None:
        self.helpers = helpers
        self.was_helped = False
        self.releases = False  # whether graphs free at their end the memory that the engine would keep
        self.of_engine: object = None  # kept by the engine between the graphs of a run
        self._on_end: list[Callable[[], object]] = []
        self._callers = [None] * callers  # a list, since pop is atomic

    @property
    def ended(self) -> bool:
        """Whether no caller waits for it any more."""
        return not self._callers

    def drop_caller(self) -> None:
        """One caller waits no more."""
        self._callers.pop()
        if self.ended:
            for stop in self._on_end:
                stop()

    def on_end(self, stop: Callable[[], object]) -> None:
        """Have a function called when the run is ended, at once if it is; from any thread, perhaps twice."""
        self._on_end.append(stop)
        if self.ended:
            stop()

    def map(self, each: Callable[[S], T], items: Sequence[S]) -> list[T]:
        """Apply a function to each item, in idle slots too where there are any; return the results in order."""
        if len(items) == 1 or self.helpers is None or not self.helpers.idle_slots:
            return [each(item) for item in items]
        self.was_helped = True
        return self.helpers.map(each, items)

    def releasing(self) -> "Run":
        """Return the same run for graphs that free memory in the end; it ends with this one."""
        same = copy.copy(self)
        same.releases, same.of_engine = True, None
        return same

    def parts(self, rows: int) -> list[slice]:
        """Cut rows into one block per usable slot, this job's own included.

        Blocks have at least LEAST_ROWS rows where there are several.
        """
        slots = 1 + (self.helpers.idle_slots if self.helpers else 0)
        count = max(1, min(slots, rows // LEAST_ROWS))
        ends = [rows * i // count for i in range(count + 1)]
        return [slice(*between) for between in itertools.pairwise(ends)]


class Graph(Protocol):
    """A computation with named inputs and outputs; `run` may be called from many threads."""

    @property
    def inputs(self) -> Mapping[str, Shape]:
        """The shapes of the inputs of `run`, by name."""
        ...

    @property
    def outputs(self) -> Mapping[str, Shape]:
        """The shapes of the outputs of `run`, by name."""
        ...

    @property
    def nodes(self) -> Mapping[str, Mapping[str, int]]:
        """The number of nodes by device, `cpu` or `cuda`, and by operator."""
        ...

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array], run: Run) -> list[Array]:
        """Return the named outputs in the order of the names.

        Raises:
            Cancelled: the run was ended meanwhile.
        """
        ...

    def run_path(self, outputs: Sequence[str], feeds: Mapping[str, Array], run: Run) -> list[Array]:
        """Return the named outputs as `run`; an engine that can computes the nodes on the path to these alone."""
        ...


class Engine(Protocol):
    """Opens graphs on one device."""

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Where its graphs compute."""
        ...

    def open(self, content: bytes) -> Graph:
        """Open an ONNX file."""
        ...
