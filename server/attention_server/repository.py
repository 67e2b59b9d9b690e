"""The folder of models: what is there, loaded and warmed; nothing is served that its manifest does not name."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from attention_proto.attention.v1.attention_pb2 import File, Manifest
from attention_proto.folder import FORMAT, MANIFEST, NAME, VERSION, named_files
from google.protobuf import json_format

from attention_server import contract
from attention_server.engine import Engine
from attention_server.errors import NotFound, Unavailable
from attention_server.model import LoadedModel, served_files
from attention_server.text import TextReader

log = structlog.get_logger()


class RepositoryError(Exception):
    """A folder of models, or a version in it, cannot be served; says which and why."""


class Repository:
    """Models by name and version.

    Args:
        root: the folder: `NAME/VERSION/manifest.json`.
        engine: opens the graphs.
    """

    def __init__(self, root: Path, engine: Engine) -> None:
        self._root = root
        self._engine = engine
        self._models: dict[str, dict[int, LoadedModel]] = {}
        self.ready = False

    def load(self) -> None:
        """Load and warm every version of every model.

        Raises:
            RepositoryError: there is none, or one cannot be served.
        """
        found = _find(self._root)
        if not found:
            raise RepositoryError(f"no model in {self._root}: expected NAME/VERSION/{MANIFEST}")
        for folder in found:
            model = self._load(folder)
            self._models.setdefault(model.name, {})[model.version] = model
        self.ready = True

    @contextmanager
    def lease(self, name: str, version: int = 0) -> Iterator[LoadedModel]:
        """Hold one version for the length of a request, whatever happens to the repository meanwhile.

        Args:
            name: the model's name.
            version: 0 is the default, the latest.

        Raises:
            NotFound: there is no such model or version.
            Unavailable: models are still loading.
        """
        yield self._get(name, version)

    def versions(self, name: str) -> list[int]:
        """Return the versions that can be asked for, ascending."""
        return sorted(self._models[name])

    def names(self) -> list[str]:
        """Return the models, by name.

        Raises:
            Unavailable: models are still loading.
        """
        self._check_ready()
        return sorted(self._models)

    def _get(self, name: str, version: int) -> LoadedModel:
        self._check_ready()
        versions = self._models.get(name)
        if versions is None:
            raise NotFound(f"there is no model {name[:128]!r}; there is {', '.join(self.names())}", field="model")
        model = versions.get(version or max(versions))
        if model is None:
            offered = ", ".join(map(str, self.versions(name)))
            raise NotFound(f"model {name!r} has no version {version}; it has {offered}", field="version")
        return model

    def _check_ready(self) -> None:
        if not self.ready:
            raise Unavailable("the models are still loading")

    def _load(self, folder: Path) -> LoadedModel:
        try:
            manifest = _read_manifest(folder)
            model = self._open(folder, manifest)
            model.warm()
        except RepositoryError as error:
            raise RepositoryError(f"{folder}: {error}") from error
        except Exception as error:  # whatever onnxruntime and the tokenizers raise: a bad file is the folder's fault
            raise RepositoryError(f"{folder}: cannot be loaded: {_one_line(error)}") from error
        log.info("model loaded", model=model.name, version=model.version, block=manifest.block, device=model.device)
        return model

    def _open(self, folder: Path, manifest: Manifest) -> LoadedModel:
        contents = {file.name: _read_file(folder, file) for file in named_files(manifest)}
        graphs = {name: self._engine.open(contents[name]) for name in served_files(manifest, self._engine.device)}
        contract.check(manifest, graphs, self._engine.device)
        return LoadedModel(
            name=folder.parent.name,
            version=int(folder.name),
            manifest=manifest,
            device=self._engine.device,
            graphs=graphs,
            reader=TextReader.of_query(manifest.text, contents),
            memory_reader=TextReader.of_memory(manifest.text, contents),
        )


def _find(root: Path) -> list[Path]:
    """Return the version folders, ordered; what does not look like one is none."""
    if not root.is_dir():
        raise RepositoryError(f"{root} is no folder")
    return [
        version
        for model in sorted(root.iterdir())
        if NAME.fullmatch(model.name) and model.is_dir()
        for version in sorted(model.iterdir())
        if VERSION.fullmatch(version.name) and version.is_dir()
    ]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _read_manifest(folder: Path) -> Manifest:
    try:
        manifest = json_format.Parse((folder / MANIFEST).read_text(), Manifest())
    except (OSError, UnicodeDecodeError, json_format.ParseError) as error:
        raise RepositoryError(f"{MANIFEST} cannot be read: {_one_line(error)}") from error
    if manifest.format != FORMAT:
        raise RepositoryError(f"{MANIFEST} has format {manifest.format}; this server reads format {FORMAT}")
    if not manifest.layers:
        raise RepositoryError(f"{MANIFEST} has no layers")
    return manifest


def _read_file(folder: Path, file: File) -> bytes:
    if not NAME.fullmatch(file.name):
        raise RepositoryError(f"{MANIFEST} names the file {file.name!r}, which is no plain file name")
    try:
        content = (folder / file.name).read_bytes()
    except OSError as error:
        raise RepositoryError(f"{file.name} cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise RepositoryError(f"{file.name} is not the file that {MANIFEST} names: its SHA-256 differs")
    return content
