"""Gives freed memory back to the system while there is little left, and at rest.

The allocator keeps freed blocks for the next messages, in pieces that a larger message may not fit in. Such memory is
in no lease, and still counts in the cgroup.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from attention_server.budget.account import Account

SECONDS = 0.25  # between two looks
USED = 1 / 2  # share of the memory that the process uses before anything is given back
FREED = 1 / 16  # share of the memory that is freed and kept before it is given back
AT_REST = 32 * 2**20  # bytes that are freed and kept while nothing runs before they are given back
LOOKS_AT_REST = 2  # without anything that runs
log = structlog.get_logger()

PAGE = os.sysconf("SC_PAGE_SIZE")


class Trimmer:
    """A thread that trims the allocator.

    Args:
        account: of the bytes in use, beside those at the start.
        memory: bytes that the process may use.
        trim: gives freed memory back to the system.
        release: frees memory that engines keep for later runs; called at rest, before a trim.
    """

    def __init__(
        self, account: Account, memory: int, trim: Callable[[], None], release: Callable[[], None] = lambda: None
    ) -> None:
        self._account = account
        self._memory = memory
        self._trim = trim
        self._stopping = threading.Event()
        self._release = release
        self._base = 0
        self._looks_at_rest = 0
        self._rested = 0  # bytes in memory after the last trim at rest
        self._thread = threading.Thread(target=self._run, name="trimmer", daemon=True)

    def start(self) -> None:
        """Start the thread, once the models are loaded: memory in use is no freed memory."""
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
        self._looks_at_rest = 0 if state.running else self._looks_at_rest + 1
        if self._looks_at_rest >= LOOKS_AT_REST and freed > AT_REST and resident > self._rested + AT_REST:
            self._release()
            self._trim()
            self._rested = resident_bytes()
        elif resident > USED * self._memory and freed > FREED * self._memory:
            self._trim()

    def _run(self) -> None:
        while not self._stopping.wait(SECONDS):
            try:
                self.look(resident_bytes())
            except Exception:  # a failure to free must not end the thread
                log.exception("freed memory could not be given back; at the next look it is tried again")


def resident_bytes() -> int:
    """Return the bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
