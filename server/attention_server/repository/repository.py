"""The repository of models: which versions are served, which are refused and why, and how that changes."""

import contextlib
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

import structlog
from attention_proto.folder import MANIFEST, NAME

from attention_server.contexts.store import MemoryStore
from attention_server.domain.index_entry import IndexEntry
from attention_server.errors import AttentionServiceError, InvalidRequest, Loading, NotFound, Unavailable, Unimplemented
from attention_server.inference.engine.protocol import Engine
from attention_server.inference.model import LoadedModel
from attention_server.machine import usable_cores
from attention_server.repository.drain import Drain
from attention_server.repository.in_turn import in_turn
from attention_server.repository.load_log import log_loaded
from attention_server.repository.load_state import LoadState, Refusal
from attention_server.repository.loader import Fingerprint, RepositoryError, choose, find, find_versions, fingerprint
from attention_server.repository.policy import Policy
from attention_server.repository.registry import Key, Lease, Registry, ServedVersion
from attention_server.repository.residency import Residency
from attention_server.repository.trial import Trials, try_and_load
from attention_server.repository.trial_records import TrialRecords

NOT_LOADED = "not loaded"
SERVES_ON = "what was loaded from it serves on"

log = structlog.get_logger()


class Repository:
    """Models by name and version.

    Changes run one after another; a request sees the versions before or after a change.

    Args:
        root: the folder: `NAME/VERSION/manifest.json`.
        engine: opens the graphs.
        memories: those of a version are forgotten when it is retired.
        policy: which versions are loaded, and when.
        trials: tries each version before it is loaded; None to load it without.

    Attributes:
        residency: which versions have their graphs in memory.
    """

    def __init__(
        self, root: Path, engine: Engine, memories: MemoryStore, policy: Policy, trials: Trials | None = None
    ) -> None:
        self._trials = trials
        self._records = TrialRecords(policy.trial_records) if policy.trial_records else None
        self._root = root
        self._engine = engine
        self._policy = policy
        self._changing = threading.Lock()  # held during a load or an unload
        self._state = LoadState()
        self._registry = Registry(policy.default_versions, self._absence)
        self._drain = Drain(self._registry, memories, policy.grace)
        self.residency = Residency(self._registry, root, engine, policy.model_budget)

    @property
    def ready(self) -> bool:
        """Whether the first load has ended."""
        return self._registry.is_open

    @property
    def serves(self) -> bool:
        """Whether the first load has ended, and there is a model, or models are loaded on request."""
        return self.ready and (self._policy.mode == "explicit" or bool(self._registry.loaded()))

    # --- for requests

    def lease(self, name: str, version: int = 0) -> Lease:
        """Return a hold on one version, which begins here and ends with `release`, or with a `with` block.

        Args:
            name: of the model.
            version: 0 for the default: the pinned one, or the latest that is ready.

        Raises:
            NotFound: there is no such model or version.
            Unavailable: models are still loading, or this version cannot be served, and why.
        """
        return Lease(self._registry, (name, version))

    def versions(self, name: str) -> list[int]:
        """Return the loaded versions of a model, ascending."""
        return sorted(version for each, version in self._registry.loaded() if each == name)

    def names(self) -> list[str]:
        """Return the names of models with a loaded default version, sorted.

        Raises:
            Unavailable: models are still loading.
        """
        if not self.ready:
            raise Loading("the models are still loading")
        return self._registry.names()

    def is_ready(self, name: str, version: int = 0) -> bool:
        """Return whether a request would be answered now.

        Args:
            name: of the model.
            version: 0 for the default.

        Raises:
            NotFound: there is no such model or version.
        """
        if not self.ready:
            return False
        if served := self._registry.get((name, version)):
            return not served.failure
        absence = self._absence((name, version))
        on_disk = any(entry.name == name and version in (0, entry.version) for entry in self._unloaded_entries())
        if isinstance(absence, NotFound) and not on_disk:
            raise absence
        return False

    def index(self) -> list[IndexEntry]:
        """Return every known version and its state at this moment, ordered by name and version.

        In mode `explicit` that includes versions in the folder that are not loaded.
        """
        entries = {(entry.name, entry.version): entry for entry in (*self._unloaded_entries(), *self._entries())}
        return [entries[key] for key in sorted(entries)]

    # --- changes

    def load(self) -> None:
        """Load the versions that are served from the start; ready afterwards.

        Raises:
            RepositoryError: the folder cannot be read; in mode `none`, no model in it can be served, or a pinned
                default is not in it; in mode `explicit`, a model to be loaded has no folder; with `strict`, a version
                cannot be served.
        """
        with self._changing:
            folders = self._find()
            if self._policy.mode == "explicit":
                folders = choose(folders, self._policy.at_start)
            self._update(folders)
            if self._policy.mode == "none":
                self._check_start(folders)
            if self._policy.strict and (refused := self._state.snapshot().refused):
                raise RepositoryError(f"a version cannot be served, and strict is set: {self._listed(refused)}")
            if self._policy.strict and (reasons := self._state.unreadable().values()):
                raise RepositoryError(f"a model cannot be read, and strict is set: {'; '.join(reasons)}")
        self._registry.is_open = True

    def poll(self) -> None:
        """Compare the folder with the loaded versions: load new and changed versions, retire those that were removed.

        A root or a model's folder that has vanished or is empty may be a disk that is not mounted: versions loaded
        from it serve on, which the log and the index say. A model is retired when its folder is removed from a
        repository that still has models.
        """
        with self._changing:
            try:
                folders = self._find()
            except RepositoryError as error:
                self._keep(dict.fromkeys(self._registry.loaded(), f"{error}; {SERVES_ON}"))
                return
            self._update(folders)
            found = set(map(_key, folders))
            loaded = set(self._registry.loaded())
            kept = {key: reason for key in loaded - found if (reason := self._reason_to_keep(key[0], found))}
            self._keep(kept)
            gone = (loaded | self._state.snapshot().refused.keys()) - found - kept.keys()
            self._retire(key for key in gone if key[0] not in self._state.unreadable())

    def load_model(self, name: str) -> None:
        """Load or reload every version in a model's folder, and retire loaded versions that are not in it any more.

        A version that has not changed on disk is left as it is.

        Raises:
            Unimplemented: the mode is not `explicit`.
            InvalidRequest: the name is malformed, or no version can be served; loaded versions serve on.
            NotFound: there is no such folder.
        """
        self._check_explicit()
        if not NAME.fullmatch(name):
            raise InvalidRequest(
                f"{name[:128]!r} is no name of a model: letters, digits and _ . - after a letter or digit",
                field="model",
            )
        with self._changing:
            folders = self._model_folders(name)
            if not self._update(folders, retry=True):
                raise InvalidRequest(f"nothing of model {name!r} can be served: {self._reasons(name)}", field="model")
            self._retire(key for key in self._keys(name) if self._root / name / str(key[1]) not in folders)

    def unload_model(self, name: str) -> None:
        """Retire every version of a model; return when its requests are answered, or after the grace.

        Raises:
            Unimplemented: the mode is not `explicit`.
            NotFound: no version of it is loaded.
        """
        self._check_explicit()
        with self._changing:
            keys = self._keys(name)
            if not keys:
                raise NotFound(f"model {name[:128]!r} is not loaded", field="model")
            retired = self._remove(keys)
        self._drain.run(retired)

    # --- the state of versions

    def _absence(self, key: Key) -> AttentionServiceError:
        """Return the error that says why a version is not served."""
        if not self.ready:
            return Loading("the models are still loading")
        name, version = key
        known = [entry for entry in self._entries() if entry.name == name]
        if not known:
            offered = ", ".join(self.names()) or "none"
            return NotFound(f"there is no model {name[:128]!r}; there is {offered}", field="model")
        wanted = version or self._policy.default_versions.get(name, 0)
        states = [
            f"version {entry.version} is {entry.state}" + (f" ({entry.reason})" if entry.reason else "")
            for entry in known
            if wanted in (0, entry.version)
        ]
        if states:
            return Unavailable(f"model {name!r} is there but cannot be served: {'; '.join(states)}", field="model")
        offered = ", ".join(map(str, self.versions(name))) or "none"
        if version:
            return NotFound(f"model {name!r} has no version {version}; it has {offered}", field="version")
        return Unavailable(f"model {name!r} has version {wanted} for its default, and only {offered}", field="model")

    def _entries(self) -> list[IndexEntry]:
        """Return an index entry for each version that is known without reading the disk."""
        state = self._state.snapshot()
        evicted = {each.key: each.failure for each in self._registry.served() if not each.is_resident}
        return state.entries(*self._registry.snapshot(), evicted, is_open=self.ready)

    def _unloaded_entries(self) -> list[IndexEntry]:
        """Return an index entry for each version on disk, in mode `explicit`; empty in modes `none` and `poll`."""
        if self._policy.mode != "explicit":
            return []
        with contextlib.suppress(RepositoryError):
            return [IndexEntry(*_key(folder), "UNAVAILABLE", NOT_LOADED) for folder in find(self._root).versions]
        return []

    def _keys(self, name: str) -> list[Key]:
        """Return the loaded and the refused versions of a model, ascending."""
        return sorted({key for key in (*self._registry.loaded(), *self._state.snapshot().refused) if key[0] == name})

    def _reasons(self, name: str) -> str:
        refused = sorted((key[1], reason) for key, reason in self._state.snapshot().refused.items() if key[0] == name)
        return "; ".join(f"version {version}: {reason}" for version, reason in refused)

    def _listed(self, refused: Mapping[Key, str]) -> str:
        return "; ".join(
            f"{self._root / name / str(version)}: {reason}" for (name, version), reason in sorted(refused.items())
        )

    def _model_folders(self, name: str) -> list[Path]:
        if not os.path.isdir(self._root / name):  # noqa: PTH112 # which never raises
            raise NotFound(f"there is no folder {name!r} in the repository", field="model")
        try:
            folders = find_versions(self._root / name)
        except RepositoryError as error:
            raise InvalidRequest(f"the folder of model {name!r} cannot be read", field="model") from error
        if not folders:
            raise InvalidRequest(f"the folder of model {name!r} has no versions in it", field="model")
        return folders

    def _check_explicit(self) -> None:
        if self._policy.mode != "explicit":
            raise Unimplemented("models are loaded and unloaded on request in repository mode explicit alone")

    def _check_start(self, folders: list[Path]) -> None:
        """Refuse to start, in mode `none`, with nothing to serve or without a pinned default.

        Raises:
            RepositoryError: says why, of each version.
        """
        if not folders:
            raise RepositoryError(f"no model in {self._root}: expected NAME/VERSION/{MANIFEST}")
        if not self._registry.loaded():
            raise RepositoryError(f"no model can be served: {self._listed(self._state.snapshot().refused)}")
        found = set(map(_key, folders))
        for key in self._policy.default_versions.items():
            if key not in found:
                raise RepositoryError(f"the default of {key[0]} is to be its version {key[1]}, which is not there")

    # --- changes; `_changing` is held

    def _reason_to_keep(self, name: str, found: set[Key]) -> str:
        """Return why a version that is not on disk any more is served on; empty where it is to be retired."""
        if reason := self._state.unreadable().get(name):
            return f"{reason}; {SERVES_ON}"
        if not found:
            return f"the repository has become empty; {SERVES_ON}"
        if all(each != name for each, _ in found) and (self._root / name).is_dir():
            return f"the folder of {name} has become empty; {SERVES_ON}"
        return ""

    def _keep(self, kept: Mapping[Key, str]) -> None:
        """Serve versions without a folder."""
        for reason in sorted(self._state.set_kept(kept)):
            log.warning("models are served without their folder", root=str(self._root), reason=reason)

    def _find(self) -> list[Path]:
        """Return all version folders; note and log models with a folder that cannot be read. Raises as `find`."""
        found = find(self._root)
        for name, reason in self._state.set_unreadable(found.unreadable).items():
            log.warning("model cannot be read", model=name, reason=reason)
        return found.versions

    def _update(self, folders: list[Path], *, retry: bool = False) -> bool:
        """Load new and changed versions; return whether any version is served as its folder is now.

        Args:
            folders: of versions.
            retry: whether to try refused versions with unchanged folders again.
        """
        waiting = [folder for folder in folders if not self._is_served(folder)]
        if not retry:
            waiting = [folder for folder in waiting if not self._is_refused(folder)]
        self._state.set_loading(map(_key, waiting))
        for folder, (before, found) in zip(waiting, in_turn(self._loaded, waiting, self._threads), strict=True):
            self._take(folder, before, found)
        keys = map(_key, folders)
        return any(self._registry.get(key) and self._state.refusal(key) is None for key in keys)

    def _is_served(self, folder: Path) -> bool:
        served = self._registry.get(_key(folder))
        if served is None or served.fingerprint != fingerprint(folder):
            return False
        self._state.set_loaded(_key(folder))  # files that were refused in between have been put back
        return True

    def _is_refused(self, folder: Path) -> bool:
        refusal = self._state.refusal(_key(folder))
        return refusal is not None and refusal.fingerprint == fingerprint(folder)

    @property
    def _threads(self) -> int:
        """The number of versions that load at once: several where trials are on record, and graphs have no budget."""
        return usable_cores() if self._records is not None and self._policy.model_budget is None else 1

    def _loaded(self, folder: Path) -> tuple[Fingerprint, LoadedModel | RepositoryError]:
        """Return a version, verified and warm, or the error that says why it is refused; and its folder's fingerprint.

        It may run ahead in another thread, and changes nothing.
        """
        before = fingerprint(folder)
        try:
            limit = self._policy.max_version_bytes
            return before, try_and_load(folder, self._engine, limit, self._trials, self._records)
        except RepositoryError as error:
            return before, error

    def _take(self, folder: Path, before: Fingerprint, found: LoadedModel | RepositoryError) -> None:
        """Serve a loaded version, or note and log why it is refused."""
        key = _key(folder)
        if isinstance(found, LoadedModel):
            self._serve(key, before, found)
        # Files that are being copied are refused at each poll, and logged once.
        elif self._state.set_refused(key, Refusal(before, str(found), found.log_reason)):
            log.warning("version refused", model=key[0], version=key[1], reason=found.log_reason)
        self._state.end_loading(key)

    def _serve(self, key: Key, before: Fingerprint, model: LoadedModel) -> None:
        """Put a version in the place of the one before, which is drained."""
        if (served := self._registry.get(key)) is not None and served.model.digest == model.digest:
            served.fingerprint = before  # the same files, written anew
            self._state.set_loaded(key)
            self.residency.adopt(served, model)
            return
        self._drain.start(self._replace(key, ServedVersion(model, before)))
        log_loaded(model)
        self.residency.make_room()

    def _replace(self, key: Key, new: ServedVersion | None) -> list[ServedVersion]:
        old = self._registry.replace(key, new)
        self._state.set_loaded(key)
        return old

    def _remove(self, keys: Iterable[Key]) -> list[ServedVersion]:
        return [served for key in keys for served in self._replace(key, None)]

    def _retire(self, keys: Iterable[Key]) -> None:
        # Ascending: the latest goes last, and no earlier version becomes the default meanwhile.
        self._drain.start(self._remove(sorted(keys)))


def _key(folder: Path) -> Key:
    return folder.parent.name, int(folder.name)
