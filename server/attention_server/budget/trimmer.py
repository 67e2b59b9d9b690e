"""Gives freed memory back to the system while there is little left.

The allocator keeps freed blocks for the next messages, in pieces that a larger message may not fit in. Such memory is
in no lease, and still counts in the cgroup.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path

from attention_server.budget.account import Account

SECONDS = 0.25  # between two looks
USED = 1 / 2  # share of the memory that the process uses before anything is given back
FREED = 1 / 16  # share of the memory that is freed and kept before it is given back
PAGE = os.sysconf("SC_PAGE_SIZE")


class Trimmer:
    """A thread that trims the allocator.

    Args:
        account: of the bytes in use, beside those at the start.
        memory: bytes that the process may use.
        trim: gives freed memory back to the system.
    """

    def __init__(self, account: Account, memory: int, trim: Callable[[], None]) -> None:
        self._account = account
        self._memory = memory
        self._trim = trim
        self._stopping = threading.Event()
        self._base = 0
        self._thread = threading.Thread(target=self._run, name="trimmer", daemon=True)

    def start(self) -> None:
        """Start the thread, once the models are loaded: what the process uses now is no freed memory."""
        self._base = resident_bytes()
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()

    def look(self, resident: int) -> None:
        """Trim if too much is freed and kept.

        Args:
            resident: bytes of the process in memory.
        """
        state = self._account.state()
        freed = resident - self._base - state.held - state.running
        if resident > USED * self._memory and freed > FREED * self._memory:
            self._trim()

    def _run(self) -> None:
        while not self._stopping.wait(SECONDS):
            self.look(resident_bytes())


def resident_bytes() -> int:
    """Return the bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
