"""Contexts that stand before rows, each made once by an engine and kept by it: the texts of `--prefix`."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from attention_client.errors import InvalidRequest, TooLarge

from attention_batch.readers.rows import Row

MOST = 1024  # handles; the engine itself bounds the bytes of its memories
Handle = TypeVar("Handle")


class _Fault(str):
    """Why a text cannot be kept."""

    __slots__ = ()


class Prefixes(Generic[Handle]):
    """Handles of contexts by text; the least recently used ones are dropped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Handle | _Fault] = OrderedDict()

    def of(self, rows: list[Row], make: Callable[[str], Handle]) -> list[Handle | None]:
        """Return the handle of each row; None for a row without a prefix.

        Args:
            rows: of one call.
            make: keeps a text, and returns its handle; raises AttentionError.

        Raises:
            InvalidRequest: the model cannot keep the prefixes of some rows; `violations` names each.
            AttentionError: as `make`.
        """
        found = [None if row.prefix is None else self._of(row.prefix, make) for row in rows]
        faults = [(f"inputs[{i}].prefix", each) for i, each in enumerate(found) if isinstance(each, _Fault)]
        if faults:
            error = InvalidRequest(faults[0][1], field=faults[0][0])
            error.violations = tuple(faults)
            raise error
        return [None if isinstance(each, _Fault) else each for each in found]

    def forget(self, rows: list[Row]) -> None:
        """Forget the handles of rows: the engine no longer keeps the contexts."""
        with self._lock:
            for row in rows:
                self._known.pop(row.prefix or "", None)

    def _of(self, text: str, make: Callable[[str], Handle]) -> Handle | _Fault:
        with self._lock:  # while one is made, all further calls wait
            if text not in self._known:
                try:
                    self._known[text] = make(text)
                except (InvalidRequest, TooLarge) as error:
                    self._known[text] = _Fault(error.message)
            self._known.move_to_end(text)
            if len(self._known) > MOST:
                self._known.popitem(last=False)
            return self._known[text]
