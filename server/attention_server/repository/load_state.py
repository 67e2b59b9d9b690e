"""The state of versions that differ from the folder: loading, refused, or served without a folder."""

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from attention_server.domain.index_entry import IndexEntry
from attention_server.repository.loader import Fingerprint
from attention_server.repository.registry import Key

EVICTED = "evicted to make room; the next request loads it again"
RELOAD_FAILED = "evicted to make room, and cannot be loaded again: {}; each request tries it again"


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason why a version cannot be served, for callers and for the log, and the fingerprint of its folder."""

    fingerprint: Fingerprint
    reason: str
    log_reason: str


class LoadState:
    """Versions by name and number; every method may be called from any thread and returns at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loading: set[Key] = set()
        self._refused: dict[Key, Refusal] = {}
        self._kept: dict[Key, str] = {}
        self._unreadable: dict[str, str] = {}

    def set_loading(self, keys: Iterable[Key]) -> None:
        """Mark versions as being loaded, or waiting for that."""
        with self._lock:
            self._loading.update(keys)

    def end_loading(self, key: Key) -> None:
        """Mark a version as tried."""
        with self._lock:
            self._loading.discard(key)

    def set_loaded(self, key: Key) -> None:
        """Mark a version as served or retired: it is neither loading nor refused."""
        with self._lock:
            self._loading.discard(key)
            self._refused.pop(key, None)

    def set_refused(self, key: Key, refusal: Refusal) -> bool:
        """Mark a version as refused; return whether the reason is a new one."""
        with self._lock:
            known = self._refused.get(key)
            self._refused[key] = refusal
        return known is None or known.log_reason != refusal.log_reason

    def set_kept(self, kept: Mapping[Key, str]) -> set[str]:
        """Set the versions that are served without a folder, with the reason of each; return the new reasons."""
        with self._lock:
            known = set(self._kept.values())
            self._kept = dict(kept)
        return set(kept.values()) - known

    def set_unreadable(self, unreadable: Mapping[str, str]) -> dict[str, str]:
        """Set the models with folders that cannot be read, and why; return those with a new reason."""
        with self._lock:
            known, self._unreadable = self._unreadable, dict(unreadable)
        return {name: reason for name, reason in unreadable.items() if known.get(name) != reason}

    def unreadable(self) -> Mapping[str, str]:
        """Return the reason by name of each model with a folder that cannot be read."""
        return self._unreadable

    def refusal(self, key: Key) -> Refusal | None:
        """Return why a version is refused; None for one that is not."""
        return self._refused.get(key)

    def snapshot(self) -> "LoadSnapshot":
        """Return the state of one moment."""
        with self._lock:
            reasons = {key: refusal.reason for key, refusal in self._refused.items()}
            return LoadSnapshot(reasons, frozenset(self._loading), dict(self._kept))


@dataclass(frozen=True, slots=True)
class LoadSnapshot:
    """The state of one moment: versions refused with reasons, versions loading, versions kept with reasons."""

    refused: Mapping[Key, str]
    loading: frozenset[Key]
    kept: Mapping[Key, str]

    def entries(
        self, loaded: Iterable[Key], draining: Iterable[Key], evicted: Mapping[Key, str], *, is_open: bool
    ) -> list[IndexEntry]:
        """Return one index entry for each version.

        Args:
            loaded: versions that are loaded, read after this snapshot: a version that was loaded in between is ready.
            draining: versions that finish the last requests.
            evicted: loaded versions without graphs in memory, each with the reason why these cannot be loaded again;
                empty where that was not tried.
            is_open: whether the first load has ended, so that loaded versions answer.
        """
        entries = {key: IndexEntry(*key, "UNAVAILABLE", reason) for key, reason in self.refused.items()}
        entries |= {key: IndexEntry(*key, "UNLOADING", "requests that hold it are being finished") for key in draining}
        entries |= {key: IndexEntry(*key, "LOADING", "being verified and warmed") for key in self.loading}
        for key in loaded:
            waits = IndexEntry(*key, "LOADING", "others are still loading, and all begin to answer together")
            entries[key] = self._ready(key, evicted.get(key)) if is_open else waits
        return list(entries.values())

    def _ready(self, key: Key, failure: str | None) -> IndexEntry:
        if failure:
            return IndexEntry(*key, "UNAVAILABLE", RELOAD_FAILED.format(failure))
        reasons = (EVICTED if failure is not None else "", self.kept.get(key, ""))
        return IndexEntry(*key, "READY", "; ".join(filter(None, reasons)))
