"""The loaded versions and the leases on them: a request leases a version, a retired version waits for its leases."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType

from attention_server.inference.engine.protocol import Graph
from attention_server.inference.model import LoadedModel
from attention_server.repository.loader import Fingerprint

Key = tuple[str, int]  # a model's name and version; version 0 stands for its default


@dataclass(slots=True, eq=False)
class ServedVersion:
    """A loaded version.

    Attributes:
        model: the version.
        fingerprint: of its folder when it was read.
        leases: the number of leases on it.
        is_resident: whether its graphs are in memory; a lease keeps them there.
        used: the moment of the last request, or of the load.
        failure: why its graphs could not be loaded again; empty where that was not tried, or succeeded.
    """

    model: LoadedModel
    fingerprint: Fingerprint
    leases: int = 0
    is_resident: bool = True
    used: float = field(default_factory=time.monotonic)
    failure: str = ""

    @property
    def key(self) -> Key:
        """Name and version."""
        return self.model.name, self.model.version


class Lease:
    """A hold on one version while the repository changes; released once, or by a `with` block."""

    __slots__ = ("_registry", "model", "version")

    def __init__(self, registry: "Registry", key: Key) -> None:
        self._registry = registry
        self.version = registry.acquire(key)
        self.model = self.version.model

    @property
    def is_resident(self) -> bool:
        """Whether the version's graphs are in memory, until this hold ends."""
        return self.version.is_resident

    def use(self) -> bool:
        """Note that a request computes with the version; return whether its graphs are in memory."""
        self.version.used = time.monotonic()
        return self.version.is_resident

    def release(self) -> None:
        """End the hold."""
        self._registry.release(self.version)

    def __enter__(self) -> LoadedModel:
        return self.model

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Registry:
    """Loaded versions by name and number. The mapping is replaced as a whole, so reading it needs no lock.

    Args:
        default_versions: the pinned default version by model; without one it is the latest.
        absence: returns the error for a version that is not loaded.

    Attributes:
        is_open: whether the first load has ended; before, no lease is given.
        on_room: called when a version has no leases any more while the graphs in memory are over the budget.
    """

    def __init__(self, default_versions: Mapping[str, int], absence: Callable[[Key], Exception]) -> None:
        self._default_versions = default_versions
        self._absence = absence
        self._lock = threading.Lock()  # held for a moment, by every request
        self._released = threading.Condition(self._lock)
        self._versions: dict[Key, ServedVersion] = {}  # a default version has two keys
        self._retired: list[ServedVersion] = []
        self._is_over = False  # the graphs in memory are over the budget, since leases hold some
        self.is_open = False
        self.on_room: Callable[[], object] = lambda: None

    def acquire(self, key: Key) -> ServedVersion:
        """Return a version with one more lease on it.

        Raises:
            Exception: the version is not loaded; made by `absence`.
        """
        with self._lock:
            version = self._versions.get(key) if self.is_open else None
            if version is not None:
                version.leases += 1
                return version
        raise self._absence(key)

    def release(self, version: ServedVersion) -> None:
        """End one lease."""
        with self._lock:
            version.leases -= 1
            if version.leases or not (self._retired or self._is_over):
                return
            self._released.notify_all()
            was_over, self._is_over = self._is_over, False
        if was_over:
            self.on_room()

    def get(self, key: Key) -> ServedVersion | None:
        """Return a version without a lease; None for one that is not loaded."""
        return self._versions.get(key)

    def loaded(self) -> list[Key]:
        """Return the names and numbers of all loaded versions."""
        return [key for key in self._versions if key[1]]

    def names(self) -> list[str]:
        """Return the names of models that have a default version, sorted."""
        return sorted(name for name, version in self._versions if not version)

    def served(self) -> list[ServedVersion]:
        """Return all loaded versions."""
        return [version for key, version in self._versions.items() if key[1]]

    def evict(self, budget: int, beside: ServedVersion | None) -> list[tuple[ServedVersion, list[Graph | None]]]:
        """Close the graphs of versions without leases, used least recently first, until the rest is within a budget.

        Args:
            budget: bytes of tensors.
            beside: a version that stays; None for the one used last.

        Returns:
            The evicted versions with their closed graphs, which are freed with the list.
        """
        evicted: list[tuple[ServedVersion, list[Graph | None]]] = []
        with self._lock:
            resident = sorted([each for each in self.served() if each.is_resident], key=lambda each: each.used)
            held = sum(each.model.tensor_bytes for each in (*resident, *self._retired) if each.is_resident)
            stays = beside or (resident[-1] if resident else None)
            for version in resident:
                if held <= budget:
                    break
                if version is stays or version.leases:
                    continue
                version.is_resident = False
                held -= version.model.tensor_bytes
                evicted.append((version, [graph.close() for graph in version.model.graphs.values()]))
            self._is_over = held > budget and any(each.leases for each in resident if each is not stays)
        return evicted

    def open(self, version: ServedVersion, graphs: Mapping[str, Graph | None]) -> None:
        """Put the graphs of an evicted version, by file name, in the place of the closed ones."""
        with self._lock:
            for name, graph in graphs.items():
                assert graph is not None  # just opened
                version.model.graphs[name].open(graph)
            version.is_resident, version.failure, version.used = True, "", time.monotonic()

    def snapshot(self) -> tuple[list[Key], list[Key]]:
        """Return the loaded and the retired versions of one moment."""
        with self._lock:
            return self.loaded(), [version.key for version in self._retired]

    def replace(self, key: Key, new: ServedVersion | None) -> list[ServedVersion]:
        """Put a version in the place of another, or remove it with None, for all requests from now on.

        Returns:
            The version that was there, retired: pass it to `wait` and `forget`. Empty where there was none.
        """
        with self._lock:
            versions = {each: version for each, version in self._versions.items() if each[1]}
            old = versions.pop(key, None)
            if new is not None:
                versions[key] = new
            for name, number in sorted(versions):
                if self._default_versions.get(name, number) == number:
                    versions[name, 0] = versions[name, number]
            self._versions = versions
            retired = [] if old is None else [old]
            self._retired += retired
        return retired

    def wait(self, retired: ServedVersion, seconds: float) -> bool:
        """Wait until a retired version has no leases; return whether that came within the time."""
        with self._lock:
            return self._released.wait_for(lambda: not retired.leases, seconds)

    def forget(self, retired: ServedVersion) -> None:
        """Remove a retired version."""
        with self._lock:
            self._retired.remove(retired)
