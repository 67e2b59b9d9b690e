"""The folder of models, alive: which versions come, which go, and why one does not answer."""

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import structlog
from attention_proto.folder import MANIFEST, NAME

from attention_server.domain.messages import IndexEntry
from attention_server.errors import AttentionServiceError, InvalidRequest, Loading, NotFound, Unavailable, Unimplemented
from attention_server.inference.contexts import MemoryStore
from attention_server.inference.engine import Engine
from attention_server.repository.loader import Fingerprint, RepositoryError, find, find_versions, fingerprint, load
from attention_server.repository.registry import Key, Lease, Served, Table

Mode = Literal["none", "poll", "explicit"]

ALL_MODELS = "*"
NOT_LOADED = "not loaded"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Policy:
    """What is loaded, and when.

    Attributes:
        mode: `none` loads all at the start, and nothing else ever; `poll` follows the folder; `explicit` obeys.
        at_start: names that `explicit` loads at the start, or `*` for all.
        default_versions: the default of a model that is not to be its latest, by name.
        max_version_bytes: the files of one version.
        grace: seconds that an unload waits for requests that hold a version.
    """

    mode: Mode = "none"
    at_start: tuple[str, ...] = ()
    default_versions: Mapping[str, int] = field(default_factory=dict)
    max_version_bytes: int = 2**32
    grace: float = 30.0


@dataclass(frozen=True, slots=True)
class _Refused:
    """Why a version's folder, looking like this, cannot be served."""

    fingerprint: Fingerprint
    reason: str


class Repository:
    """Models by name and version.

    What changes it does so one after another and takes its time; requests see the table before or after.

    Args:
        root: the folder: `NAME/VERSION/manifest.json`.
        engine: opens the graphs.
        memories: those of a version go with it.
        policy: what is loaded, and when.
    """

    def __init__(self, root: Path, engine: Engine, memories: MemoryStore, policy: Policy) -> None:
        self._root = root
        self._engine = engine
        self._memories = memories
        self._policy = policy
        self._changing = threading.Lock()  # held by who loads or retires
        self._noting = threading.Lock()  # of what follows, held for a moment
        self._loading: set[Key] = set()
        self._refused: dict[Key, _Refused] = {}
        self._root_is_there = True
        self._table = Table(policy.default_versions, self._absence)

    @property
    def ready(self) -> bool:
        """Whether the first load has ended."""
        return self._table.open

    # --- for requests

    def lease(self, name: str, version: int = 0) -> Lease:
        """Hold one version for as long as the lease is entered.

        Args:
            name: the model's name.
            version: 0 is the default: the one that is pinned, or the latest that is ready.

        Raises, on entering:
            NotFound: there is no such model or version.
            Unavailable: models are still loading, or this one is there and cannot be served, and why.
        """
        return Lease(self._table, (name, version))

    def versions(self, name: str) -> list[int]:
        """Return the versions that answer, ascending."""
        return sorted(version for each, version in self._table.versions() if each == name)

    def names(self) -> list[str]:
        """Return the models whose default answers, by name.

        Raises:
            Unavailable: models are still loading.
        """
        if not self.ready:
            raise Loading("the models are still loading")
        return self._table.defaults()

    def is_ready(self, name: str, version: int = 0) -> bool:
        """Return whether a request would be answered now.

        Args:
            name: the model's name.
            version: 0 is the default.

        Raises:
            NotFound: there is no such model or version.
        """
        if not self.ready:
            return False
        if self._table.get((name, version)):
            return True
        absence = self._absence((name, version))
        on_disk = any(entry.name == name and version in (0, entry.version) for entry in self._on_disk())
        if isinstance(absence, NotFound) and not on_disk:
            raise absence
        return False

    def index(self) -> list[IndexEntry]:
        """Return every version that is known, by name and version, and the state that each is in at this moment.

        In mode `explicit`, what lies in the folder and is not loaded is there too.
        """
        entries = {(entry.name, entry.version): entry for entry in (*self._on_disk(), *self._known())}
        return [entries[key] for key in sorted(entries)]

    # --- for what changes it

    def load(self) -> None:
        """Load what is served from the start; ready afterwards.

        Raises:
            RepositoryError: the folder cannot be read; in mode `none`, it has no model, or a version cannot be served;
                in mode `explicit`, a model named has no folder.
        """
        with self._changing:
            folders = find(self._root)
            match self._policy.mode:
                case "none":
                    self._load_strictly(folders)
                case "poll":
                    self._follow(folders)
                case "explicit":
                    self._update(_chosen(folders, self._policy.at_start))
        self._table.open = True

    def poll(self) -> None:
        """Follow the folder once: load what is new or has changed, and retire what has gone."""
        with self._changing:
            try:
                folders = find(self._root)
            except RepositoryError as error:  # of a disk that went away, nothing is concluded
                if self._root_is_there:
                    log.warning("the repository cannot be read; what is loaded serves on", reason=str(error))
                self._root_is_there = False
                return
            self._root_is_there = True
            self._follow(folders)

    def load_model(self, name: str) -> None:
        """Load or reload every version in a model's folder, and retire those that are not there any more.

        A version that has not changed on disk is left as it is.

        Raises:
            Unimplemented: the mode is not `explicit`.
            InvalidRequest: it is no name, or nothing of the folder can be served; what was loaded serves on.
            NotFound: there is no such folder.
        """
        self._check_explicit()
        if not NAME.fullmatch(name):
            raise InvalidRequest(
                f"{name[:128]!r} is no name of a model: letters, digits and _ . - after a letter or digit",
                field="model",
            )
        with self._changing:
            folders = self._folders_of(name)
            if not self._update(folders, again=True):
                raise InvalidRequest(f"nothing of model {name!r} can be served: {self._reasons(name)}", field="model")
            self._retire(key for key in self._keys(name) if self._root / name / str(key[1]) not in folders)

    def unload_model(self, name: str) -> None:
        """Retire every version of a model; return when its requests are answered, or after the grace.

        Raises:
            Unimplemented: the mode is not `explicit`.
            NotFound: nothing of it is loaded.
        """
        self._check_explicit()
        with self._changing:
            keys = self._keys(name)
            if not keys:
                raise NotFound(f"model {name[:128]!r} is not loaded", field="model")
            retired = self._take_out(keys)
        self._drain(retired)

    def _absence(self, key: Key) -> AttentionServiceError:
        """Return why a version is not served, for its caller."""
        if not self.ready:
            return Loading("the models are still loading")
        name, version = key
        known = [entry for entry in self._known() if entry.name == name]
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

    def _check_explicit(self) -> None:
        if self._policy.mode != "explicit":
            raise Unimplemented("models are loaded and unloaded on request in repository mode explicit alone")

    # --- what is known

    def _known(self) -> list[IndexEntry]:
        """Return what is known without a look at the disk, at most one entry a version: what answers comes last."""
        with self._noting:
            entries = {key: IndexEntry(*key, "UNAVAILABLE", refused.reason) for key, refused in self._refused.items()}
            loading = {key: IndexEntry(*key, "LOADING", "being verified and warmed") for key in self._loading}
        answering, retired = self._table.state()  # later: what has taken over meanwhile is seen here
        entries |= {key: IndexEntry(*key, "UNLOADING", "requests that hold it are being finished") for key in retired}
        entries |= loading
        for key in answering:
            waits = IndexEntry(*key, "LOADING", "others are still loading, and all begin to answer together")
            entries[key] = IndexEntry(*key, "READY", "") if self.ready else waits
        return list(entries.values())

    def _on_disk(self) -> list[IndexEntry]:
        if self._policy.mode != "explicit":
            return []
        with contextlib.suppress(RepositoryError):
            return [IndexEntry(*_key(folder), "UNAVAILABLE", NOT_LOADED) for folder in find(self._root)]
        return []

    def _keys(self, name: str) -> list[Key]:
        """Return what is loaded or refused of a model, ascending."""
        return sorted({key for key in (*self._table.versions(), *self._refused) if key[0] == name})

    def _reasons(self, name: str) -> str:
        refused = sorted((key[1], each.reason) for key, each in self._refused.items() if key[0] == name)
        return "; ".join(f"version {version}: {reason}" for version, reason in refused)

    def _folders_of(self, name: str) -> list[Path]:
        if not (self._root / name).is_dir():
            raise NotFound(f"there is no folder {name!r} in the repository", field="model")
        try:
            folders = find_versions(self._root / name)
        except RepositoryError as error:
            raise InvalidRequest(f"the folder of model {name!r} cannot be read", field="model") from error
        if not folders:
            raise InvalidRequest(f"the folder of model {name!r} has no versions in it", field="model")
        return folders

    # --- changes; `_changing` is held

    def _load_strictly(self, folders: list[Path]) -> None:
        if not folders:
            raise RepositoryError(f"no model in {self._root}: expected NAME/VERSION/{MANIFEST}")
        self._loading.update(map(_key, folders))
        for folder in folders:
            try:
                self._load(folder)
            except RepositoryError as error:
                raise RepositoryError(f"{folder}: {error}") from error
        for key in self._policy.default_versions.items():
            if not self._table.get(key):
                raise RepositoryError(f"the default of {key[0]} is to be its version {key[1]}, which is not there")

    def _follow(self, folders: list[Path]) -> None:
        """Make what is served what lies in these folders; what is new takes over before what is gone goes."""
        self._update(folders)
        found = set(map(_key, folders))
        self._retire({*self._table.versions(), *self._refused} - found)

    def _update(self, folders: list[Path], *, again: bool = False) -> bool:
        """Load what is new or changed; return whether a version answers as its folder is now.

        Args:
            folders: of versions.
            again: whether what was refused is tried again although its folder looks the same.
        """
        waiting = [folder for folder in folders if not self._is_served(folder)]
        if not again:
            waiting = [folder for folder in waiting if not self._is_refused(folder)]
        with self._noting:
            self._loading.update(map(_key, waiting))
        for folder in waiting:
            self._try(folder)
        return any(self._table.get(_key(folder)) and _key(folder) not in self._refused for folder in folders)

    def _is_served(self, folder: Path) -> bool:
        served = self._table.get(_key(folder))
        if served is None or served.fingerprint != fingerprint(folder):
            return False
        with self._noting:  # what was refused in between has been put back
            self._refused.pop(_key(folder), None)
        return True

    def _is_refused(self, folder: Path) -> bool:
        refused = self._refused.get(_key(folder))
        return refused is not None and refused.fingerprint == fingerprint(folder)

    def _try(self, folder: Path) -> None:
        before, key = fingerprint(folder), _key(folder)
        try:
            self._load(folder)
        except RepositoryError as error:
            known = self._refused.get(key)
            if known is None or known.reason != str(error):  # a slow copy is refused at each look, and logged once
                log.warning("version refused", model=key[0], version=key[1], reason=str(error))
            with self._noting:
                self._refused[key] = _Refused(before, str(error))
        finally:
            with self._noting:
                self._loading.discard(key)

    def _load(self, folder: Path) -> None:
        """Verify, load and warm a version, and let it take over; the one before it goes when nobody holds it."""
        key, before = _key(folder), fingerprint(folder)
        model = load(folder, self._engine, self._policy.max_version_bytes)
        served = self._table.get(key)
        if served is not None and served.model.digest == model.digest:  # the same files, written anew
            with self._noting:
                served.fingerprint = before
                self._refused.pop(key, None)
            return
        self._drain_behind(self._replace(key, Served(model, before)))
        log.info("model loaded", model=key[0], version=key[1], block=model.manifest.block, device=model.device)

    def _replace(self, key: Key, new: Served | None) -> list[Served]:
        old = self._table.replace(key, new)
        with self._noting:
            self._loading.discard(key)
            self._refused.pop(key, None)
        return old

    def _take_out(self, keys: Iterable[Key]) -> list[Served]:
        return [served for key in keys for served in self._replace(key, None)]

    def _retire(self, keys: Iterable[Key]) -> None:
        self._drain_behind(self._take_out(sorted(keys)))  # the latest last: no other is the default meanwhile

    def _drain_behind(self, retired: list[Served]) -> None:
        if retired:
            threading.Thread(target=self._drain, args=(retired,), name="drain", daemon=True).start()

    # --- the end of a version

    def _drain(self, retired: list[Served]) -> None:
        """Wait until nobody holds these, or the grace has passed; forget their memories, and return their memory."""
        end = time.monotonic() + self._policy.grace
        while retired:  # emptied, so that nothing here keeps a session alive
            self._end(retired.pop(), end)
        _trim()

    def _end(self, served: Served, end: float) -> None:
        model = served.model
        drained = self._table.wait(served, max(0.0, end - time.monotonic()))
        self._memories.forget(model.name, model.version, model.digest)
        self._table.end(served)
        if drained:
            log.info("model unloaded", model=model.name, version=model.version)
        else:
            log.warning("model unloaded, though requests hold it", model=model.name, version=model.version)


def _key(folder: Path) -> Key:
    return folder.parent.name, int(folder.name)


def _chosen(folders: list[Path], names: tuple[str, ...]) -> list[Path]:
    """Return the folders of these models.

    Raises:
        RepositoryError: one has none.
    """
    there = {folder.parent.name for folder in folders}
    for name in names:
        if name not in (*there, ALL_MODELS):
            raise RepositoryError(f"the model {name!r}, to be loaded at the start, has no folder with a version in it")
    return [folder for folder in folders if ALL_MODELS in names or folder.parent.name in names]


def _libc_trim() -> Callable[[], object]:
    """Return glibc's `malloc_trim`; what does nothing, where the C library is another."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return lambda: None
    return lambda: trim(0)


_trim = _libc_trim()
