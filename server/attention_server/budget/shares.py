"""Slots with a share for each holder."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from attention_server.budget.account import SHARE
from attention_server.errors import Full


class Shares:
    """A number of slots, of which one holder has at most a part, by the rule of `Account`.

    Args:
        alone: slots that a holder may have alone; all together may have a third more.
        kind: plural of the thing that takes a slot, for the error.
    """

    def __init__(self, alone: int, kind: str) -> None:
        self._alone = alone
        self._count = alone + -(-alone // SHARE)
        self._kind = kind
        self._taken: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """The number of slots."""
        return self._count

    @contextmanager
    def hold(self, holder: str) -> Iterator[None]:
        """Hold a slot.

        Raises:
            Full: none is free, or the holder has its share.
        """
        own, taken = self._taken[holder] + 1, self._taken.total() + 1
        if own > self._alone or own > SHARE * (self._count - taken + 1):
            raise Full(f"{taken - 1} {self._kind} are open, {own - 1} of them this caller's, as many as it may have")
        self._taken[holder] += 1
        try:
            yield
        finally:
            self._taken[holder] -= 1
            if not self._taken[holder]:
                del self._taken[holder]
