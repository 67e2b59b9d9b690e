"""The rule for peers that stall, for connections of any protocol."""

from collections.abc import Hashable


class StallDetector:
    """Tells whether a peer has stalled between two checks: it was waited for, and hardly a byte has moved.

    Args:
        least_bytes: progress between two checks, in one direction.

    Attributes:
        received: bytes since the last check.
        sent: bytes that the protocol has handed to the transport since the last check.
        has_advanced: set by progress that bytes do not show, such as a complete head or a transport that takes more.
    """

    __slots__ = ("_least_bytes", "_state", "_unsent", "has_advanced", "received", "sent")

    def __init__(self, least_bytes: int) -> None:
        self._least_bytes = least_bytes
        self._state: Hashable = None
        self._unsent = 0
        self.received = self.sent = 0
        self.has_advanced = False

    def check(self, state: Hashable, unsent: int) -> bool:
        """Return whether the peer has stalled since the last check, and begin anew.

        Args:
            state: of waiting, false for none. Another state than at the last check is progress.
            unsent: bytes that the transport still holds.
        """
        moved = max(self.received, self.sent, self._unsent - unsent)
        is_stalled = bool(state) and state == self._state and not self.has_advanced and moved < self._least_bytes
        self._state, self._unsent = state, unsent
        self.received = self.sent = 0
        self.has_advanced = False
        return is_stalled
