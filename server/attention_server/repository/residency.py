"""The graphs in memory: under a budget, those of versions used least recently go, and come back on request."""

import threading
from dataclasses import replace
from pathlib import Path

import structlog
from attention_proto.allocator import give_back

from attention_server.domain.residency import ResidencyState, VersionResidency
from attention_server.errors import Unavailable
from attention_server.inference.engine.protocol import Engine
from attention_server.inference.model import LoadedModel
from attention_server.repository.loader import RepositoryError, reopen
from attention_server.repository.registry import Key, Registry, ServedVersion
from attention_server.scheduling.future import Future

log = structlog.get_logger()


class Residency:
    """Evicts and reloads the graphs of served versions. Manifest, tokenizers, measured costs and memories stay.

    A version was verified, probed and measured when it was first loaded. A reload verifies the hashes of its files
    against the manifest in memory, so that the same bytes come back, and repeats nothing else.

    Args:
        registry: the versions and their leases.
        root: the folder of models.
        engine: opens the graphs.
        budget: bytes that the tensors of graphs may have together; None for no limit. Versions with requests, and the
            one used last, stay over the budget too.
    """

    def __init__(self, registry: Registry, root: Path, engine: Engine, budget: int | None) -> None:
        self._registry = registry
        self._root = root
        self._engine = engine
        self.budget = budget
        self._opening = threading.Lock()  # one version is opened at a time, each after room was made
        self._lock = threading.Lock()  # held for a moment
        self._reloads: dict[ServedVersion, Future[None]] = {}
        self._counts: dict[Key, VersionResidency] = {}
        registry.on_room = self._on_room

    def reload(self, version: ServedVersion) -> "Future[None]":
        """Return a future that is done when a leased version's graphs are in memory: of one reload for all callers.

        The future raises Unavailable where the version cannot be loaded.
        """
        with self._lock:
            if version in self._reloads:
                return self._reloads[version]
            future: Future[None] = Future()
            if not version.is_resident:
                self._reloads[version] = future
                threading.Thread(target=self._reload, args=(version, future), name="reload", daemon=True).start()
                return future
        future.set_result(None)
        return future

    def adopt(self, version: ServedVersion, loaded: LoadedModel) -> None:
        """Take the graphs of a model that was loaded from the same files as an evicted version."""
        with self._opening:
            if not version.is_resident:
                self._registry.open(version, {name: graph.close() for name, graph in loaded.graphs.items()})
        self.make_room()

    def make_room(self, needed: int = 0, beside: ServedVersion | None = None) -> None:
        """Evict versions until the graphs in memory fit into the budget.

        Args:
            needed: bytes to be free beside.
            beside: a version that stays; None for the one used last.
        """
        if self.budget is None:
            return
        evicted = self._registry.evict(self.budget - needed, beside)
        for version, _ in evicted:
            self._count(version).evictions += 1
            log.info("model evicted", model=version.model.name, version=version.model.version)
        if evicted:
            evicted.clear()  # the last references to the graphs
            give_back()

    def state(self) -> ResidencyState:
        """Return the bytes in memory and the counts of each version at this moment."""
        with self._lock:
            counts = dict(self._counts)
        found = {}
        for version in self._registry.served():
            size = version.model.tensor_bytes if version.is_resident else 0
            found[version.key] = replace(counts.get(version.key, VersionResidency()), bytes=size)
        return ResidencyState(self.budget, found)

    @property
    def is_idle(self) -> bool:
        """Whether no version is being reloaded."""
        return not self._reloads

    def _reload(self, version: ServedVersion, future: "Future[None]") -> None:
        """Reload a version in a thread of its own, and settle the future of its callers."""
        error: Unavailable | None = None
        try:
            with self._opening:
                self._open(version)
        except Exception as found:  # noqa: BLE001 # the callers wait for any outcome
            error = self._failure(version, found)
        with self._lock:
            del self._reloads[version]
        if error is None:
            self._count(version).reloads += 1
            future.set_result(None)
        else:
            self._count(version).failed_reloads += 1
            future.set_exception(error)
        self.make_room()  # a version that was in use may be idle now

    def _open(self, version: ServedVersion) -> None:
        model = version.model
        if version.is_resident:  # adopted meanwhile
            return
        self.make_room(model.tensor_bytes, version)
        self._registry.open(version, reopen(self._root / model.name / str(model.version), model, self._engine))
        log.info("model reloaded", model=model.name, version=model.version)

    def _failure(self, version: ServedVersion, error: Exception) -> Unavailable:
        """Note and log why a version cannot be reloaded; return the error for its callers."""
        found = error if isinstance(error, RepositoryError) else RepositoryError("cannot be loaded", repr(error))
        model = version.model
        version.failure = str(found)
        log.warning("model cannot be reloaded", model=model.name, version=model.version, reason=found.log_reason)
        return Unavailable(
            f"model {model.name!r} version {model.version} was evicted to make room, and cannot be loaded again: "
            f"{found}; each request tries it again",
            field="model",
        )

    def _count(self, version: ServedVersion) -> VersionResidency:
        with self._lock:
            return self._counts.setdefault(version.key, VersionResidency())

    def _on_room(self) -> None:
        """Evict versions that requests held until now."""
        threading.Thread(target=self.make_room, name="evict", daemon=True).start()
