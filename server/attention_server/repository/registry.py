"""What answers at this moment, and who holds it: each request takes a lease, and what goes waits for those it gave."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType

from attention_server.inference.model import LoadedModel
from attention_server.repository.loader import Fingerprint

Key = tuple[str, int]  # a model's name and version; version 0 stands for its default
Absence = Callable[[Key], Exception]


@dataclass(slots=True, eq=False)
class Served:
    """A version that answers, what its folder looked like when it was read, and how many hold it."""

    model: LoadedModel
    fingerprint: Fingerprint
    leases: int = 0

    @property
    def key(self) -> Key:
        """Its name and version."""
        return self.model.name, self.model.version


class Lease:
    """Holds one version, whatever happens to the repository meanwhile; a context manager that gives the model."""

    __slots__ = ("_key", "_served", "_table")

    def __init__(self, table: "Table", key: Key) -> None:
        self._table = table
        self._key = key

    def __enter__(self) -> LoadedModel:
        self._served = self._table.take(self._key)
        return self._served.model

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._table.give_back(self._served)
        del self._served


class Table:
    """What answers, by name and version. It changes as a whole, so that a look at it needs no lock.

    Args:
        default_versions: the default of a model that is not to be its latest, by name.
        absence: says why a version does not answer.
    """

    def __init__(self, default_versions: Mapping[str, int], absence: Absence) -> None:
        self._default_versions = default_versions
        self._absence = absence
        self._lock = threading.Lock()  # held for a moment, by every request
        self._given_back = threading.Condition(self._lock)
        self._served: dict[Key, Served] = {}  # a default stands twice
        self._retired: list[Served] = []
        self.open = False  # until then, nothing is given out

    def take(self, key: Key) -> Served:
        """Count one more who holds a version.

        Raises:
            Exception: it does not answer, and why.
        """
        with self._lock:
            served = self._served.get(key) if self.open else None
            if served is not None:
                served.leases += 1
                return served
        raise self._absence(key)

    def give_back(self, served: Served) -> None:
        """Count one less."""
        with self._lock:
            served.leases -= 1
            if not served.leases and self._retired:
                self._given_back.notify_all()

    def get(self, key: Key) -> Served | None:
        """Return what answers, to look at."""
        return self._served.get(key)

    def versions(self) -> list[Key]:
        """Return every version that answers."""
        return [key for key in self._served if key[1]]

    def defaults(self) -> list[str]:
        """Return the models whose default answers, by name."""
        return sorted(name for name, version in self._served if not version)

    def state(self) -> tuple[list[Key], list[Key]]:
        """Return the versions that answer and those that wait for their last request, of one moment."""
        with self._lock:
            return self.versions(), [served.key for served in self._retired]

    def replace(self, key: Key, new: Served | None) -> list[Served]:
        """Let a version take over, or go, for every request that comes from now on.

        Returns:
            The one before it, if there is one: `wait` for it.
        """
        with self._lock:
            table = {each: served for each, served in self._served.items() if each[1]}
            old = table.pop(key, None)
            if new is not None:
                table[key] = new
            for name, version in sorted(table):
                if self._default_versions.get(name, version) == version:
                    table[name, 0] = table[name, version]
            self._served = table
            retired = [] if old is None else [old]
            self._retired += retired
        return retired

    def wait(self, served: Served, seconds: float) -> bool:
        """Wait until nobody holds a version that was replaced; return whether that came within the time."""
        with self._lock:
            return self._given_back.wait_for(lambda: not served.leases, seconds)

    def end(self, served: Served) -> None:
        """Know no more of a version that was replaced."""
        with self._lock:
            self._retired.remove(served)
