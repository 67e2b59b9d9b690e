"""Turns of the event loop that the peers of a port share: in each turn so much work for each address."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

WORK_OF_A_TURN = 16  # pieces for one address: reads, heads of requests, and pipelined requests that begin
CONNECTION = 8  # pieces that a new connection takes
CALL = 0.5  # pieces that a gRPC call takes: as many as one batch computes begin in one turn
PIECE_SECONDS = 0.00025  # a read that takes longer counts as several

Work = Callable[[], object]


@dataclass(slots=True)
class Waiting:
    """The work of one address that waits for a turn; each piece counts itself with `PeerTurns.add`.

    Attributes:
        begun: of connections that have begun, which hold memory while it waits.
        new: connections that have not begun.
    """

    begun: deque[Work] = field(default_factory=deque)
    new: deque[Work] = field(default_factory=deque)

    def __bool__(self) -> bool:
        return bool(self.begun or self.new)


class PeerTurns:
    """Bounds the work for one address in a turn of the event loop; what is over the bound waits for later turns.

    A flood of one address delays the work of another address by a bounded time, for any number of connections. An
    address that is alone loses nothing: the loop turns again at once.
    """

    def __init__(self) -> None:
        self._done: defaultdict[str, float] = defaultdict(float)  # in this turn, by address
        self._waiting: defaultdict[str, Waiting] = defaultdict(Waiting)
        self._is_scheduled = False

    def take(self, host: str, count: int = 1) -> bool:
        """Count pieces of work, and return True, if they may be done now: in this turn, and before none that waits."""
        if host in self._waiting or self._done[host] >= WORK_OF_A_TURN:
            return False
        self.add(host, count)
        return True

    def is_over(self, host: str) -> bool:
        """Return whether no more may be done for an address in this turn."""
        return self._done[host] >= WORK_OF_A_TURN

    def add_call(self, host: str) -> None:
        """Count a gRPC call that has begun."""
        self.add(host, CALL)

    def add_seconds(self, host: str, seconds: float) -> None:
        """Count the time of a read, beside its first piece."""
        if seconds >= PIECE_SECONDS:
            self.add(host, int(seconds / PIECE_SECONDS))

    def add(self, host: str, count: float = 1) -> None:
        """Count pieces of work that are done in any case."""
        self._done[host] += count
        self._schedule()

    def wait(self, host: str, work: Work) -> None:
        """Do the work of a connection in a later turn."""
        self._waiting[host].begun.append(work)
        self._schedule()

    def wait_to_begin(self, host: str, work: Work) -> None:
        """Begin a connection in a later turn: one in each, and further ones after the connections that have begun."""
        self._waiting[host].new.append(work)
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """Begin a turn: do the first pieces that wait of each address."""
        self._is_scheduled = False
        self._done.clear()
        for host, waiting in list(self._waiting.items()):
            if waiting.new:
                waiting.new.popleft()()
            while waiting and self._done[host] < WORK_OF_A_TURN:
                (waiting.begun or waiting.new).popleft()()
            if not waiting:
                del self._waiting[host]
