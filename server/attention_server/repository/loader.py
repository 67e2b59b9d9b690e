"""Version folders: how one is found, verified, opened, probed, warmed and measured."""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from attention_proto.attention.v1.attention_pb2 import File
from attention_proto.folder import (
    MANIFEST,
    NAME,
    TRANSFORMER,
    VERSION,
    UnreadableManifestError,
    named_files,
    parse_manifest,
)

from attention_server.inference.calibration import measured_costs
from attention_server.inference.engine.evictable import EvictableGraph
from attention_server.inference.engine.protocol import Engine, Graph
from attention_server.inference.flash import open_flash
from attention_server.inference.head_weights import open_head_weights
from attention_server.inference.independence import DependentRowsError, check_independence, tolerance_of
from attention_server.inference.model import LoadedModel, served_files
from attention_server.inference.probes import ModelProbes
from attention_server.inference.shared_graphs import SharedGraphs
from attention_server.inference.site_constants import WrongConstantError, check_constants, check_flash
from attention_server.inference.tokenizer import TextTokenizer
from attention_server.repository import graph_contract as contract
from attention_server.repository.graph_bytes import tensor_bytes
from attention_server.scheduling.cost_model import Costs

ALL_MODELS = "*"
LARGE = 64 * 2**20  # bytes; the hash of a larger file is compared before the file is held in memory
MANIFEST_BYTES = 16 * 2**20  # the largest manifest that is read; the embedded ones have 4 KiB

DIFFERS = f"{{}} is not the file that {MANIFEST} names: its SHA-256 differs"
OPAQUE = "cannot be loaded; the log has the cause"

# The name, size, times and inode of each file in a folder: different for a file that was written anew.
Fingerprint = tuple[tuple[str, int, int, int, int], ...]


class RepositoryError(Exception):
    """A folder of models, or a version in it, cannot be served.

    Args:
        reason: the message, which callers may read: no path outside the repository, no words of libraries.
        log_reason: the reason as the log has it; as `reason` by default.
    """

    def __init__(self, reason: str, log_reason: str = "") -> None:
        super().__init__(reason)
        self.log_reason = log_reason or reason


@dataclass(frozen=True, slots=True)
class Tried:
    """A version that was loaded, probed, warmed and measured by another process.

    Attributes:
        digest: of its manifest, which names all files with a hash.
        device: where it was computed.
        costs: its measured costs.
    """

    digest: str
    device: str
    costs: Costs


@dataclass(frozen=True, slots=True)
class Found:
    """The content of a repository.

    Attributes:
        versions: the version folders of all models, ordered by name and number.
        unreadable: the reason by name of each model with a folder that cannot be read.
    """

    versions: list[Path]
    unreadable: dict[str, str]


def find(root: Path) -> Found:
    """Return the version folders of all models; folders without such names are left out.

    Raises:
        RepositoryError: the folder is missing or cannot be read.
    """
    try:
        names = sorted(_folders(root, NAME))
    except OSError as error:
        reason = f"is no folder that can be read: {error.strerror}"
        raise RepositoryError(f"the repository {reason}", f"{root} {reason}") from error
    found = Found([], {})
    for name in names:
        try:
            found.versions.extend(find_versions(root / name))
        except RepositoryError as error:
            found.unreadable[name] = str(error)
    return found


def find_versions(model: Path) -> list[Path]:
    """Return a model's version folders, ascending; an empty list where the model's folder is missing.

    Raises:
        RepositoryError: the folder cannot be read.
    """
    try:
        versions = [int(name) for name in _folders(model, VERSION)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RepositoryError(f"the folder of {model.name} cannot be read: {error.strerror}") from error
    return [model / str(version) for version in sorted(versions)]


def choose(folders: list[Path], names: tuple[str, ...]) -> list[Path]:
    """Return the version folders of the models named; of all for `*`.

    Raises:
        RepositoryError: a model has none.
    """
    there = {folder.parent.name for folder in folders}
    for name in names:
        if name not in (*there, ALL_MODELS):
            raise RepositoryError(f"the model {name!r}, to be loaded at the start, has no folder with a version in it")
    return [folder for folder in folders if ALL_MODELS in names or folder.parent.name in names]


def fingerprint(folder: Path) -> Fingerprint:
    """Return the fingerprint of a folder, without reading its files; empty where the folder is missing."""
    try:
        with os.scandir(folder) as entries:
            return tuple(sorted(_file_status(entry) for entry in entries))
    except OSError:
        return ()


def load(folder: Path, engine: Engine, max_bytes: int, tried: Tried | None = None) -> LoadedModel:
    """Verify a version's folder, and open, probe, warm and measure its graphs.

    Args:
        folder: `NAME/VERSION`.
        engine: opens the graphs.
        max_bytes: the size that the files named by its manifest may have together.
        tried: the version was probed and measured before, unless that was on another device.

    Raises:
        RepositoryError: the version cannot be served.
    """
    try:
        model = _open(folder, engine, max_bytes)
        _check_digest(model, tried)
        if tried is not None and tried.device == model.device:
            model.warm()
            return replace(model, costs=tried.costs)
        shared = _check_rows(model)
        model.warm()
        return replace(model, costs=measured_costs(replace(model, costs=Costs(shared=shared))))
    except RepositoryError:
        raise
    except contract.ContractError as error:
        raise RepositoryError(f"cannot be loaded: {error}") from error
    except Exception as error:  # onnxruntime and tokenizers raise many types for a bad file
        raise RepositoryError(OPAQUE, f"cannot be loaded: {_one_line(error)}") from error


def reopen(folder: Path, model: LoadedModel, engine: Engine) -> dict[str, Graph]:
    """Open the graphs of a loaded version again, from files with the hashes of its manifest.

    Raises:
        RepositoryError: a file is another one now, or cannot be opened.
    """
    files = {file.name: file for file in named_files(model.manifest)}
    try:
        return {name: engine.open(_read_verified(folder, files[name], _size(folder, name))) for name in model.graphs}
    except RepositoryError:
        raise
    except Exception as error:  # as `load`
        raise RepositoryError(OPAQUE, f"cannot be loaded: {_one_line(error)}") from error


def _check_digest(model: LoadedModel, tried: Tried | None) -> None:
    if tried is not None and tried.digest != model.digest:
        raise RepositoryError("it was written while it was being loaded")


def _check_rows(model: LoadedModel) -> frozenset[str]:
    """Check that graphs compute rows and sequences independently, and with the manifest's constants.

    Returns:
        The names of those that run on the rows of several sequences, to the bit.

    Raises:
        RepositoryError: one does not.
    """
    tolerance = tolerance_of(model.manifest, model.device)
    probes = ModelProbes(model.manifest, model.layers, model.graphs, model.reader, model.memory_reader)
    shared = SharedGraphs(model.graphs)
    try:
        for probe in probes.each():
            check_independence(probe, tolerance)
            if model.manifest.block == TRANSFORMER:
                shared.measure(probe)
        for layer in model.layers:
            check_constants(layer, tolerance)
            check_flash(layer, tolerance)
    except (DependentRowsError, WrongConstantError) as error:
        raise RepositoryError(str(error)) from error
    return frozenset(shared.names)


def _folders(folder: Path, names: re.Pattern[str]) -> Iterator[str]:
    """Yield the names of folders in a folder that match a pattern.

    The kind of each entry comes with the listing, so that no change falls between.
    """
    with os.scandir(folder) as entries:
        yield from (entry.name for entry in entries if names.fullmatch(entry.name) and _may_be_folder(entry))


def _may_be_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself: refused with this reason when it is read
        return True


def _file_status(entry: os.DirEntry[str]) -> tuple[str, int, int, int, int]:
    try:
        status = entry.stat()
    except OSError:  # a broken link
        return entry.name, -1, 0, 0, 0
    return entry.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _open(folder: Path, engine: Engine, max_bytes: int) -> LoadedModel:
    written = _read(folder, MANIFEST, MANIFEST_BYTES)
    try:
        manifest = parse_manifest(written)
    except UnreadableManifestError as error:
        raise RepositoryError(f"{MANIFEST} {error}") from error
    files: dict[str, File] = {}
    for file in named_files(manifest):
        if files.setdefault(file.name, file) != file:
            raise RepositoryError(f"{MANIFEST} names {file.name[:64]} with two hashes")
    sizes = _sizes(folder, files, max_bytes)
    served, graphs, contents = set(served_files(manifest, engine.device)), {}, {}
    held = 0
    for name, file in files.items():  # one at a time, each once: a file may stand at many places, and be large
        content = _read_verified(folder, file, sizes[name])
        if name in served:
            graphs[name] = EvictableGraph(engine.open(content))
            held += tensor_bytes(content)
        elif not name.endswith(".onnx"):
            contents[name] = content
    contract.check(manifest, graphs, engine.device)
    flash = open_flash(manifest.layers, engine)
    return LoadedModel(
        name=folder.parent.name,
        version=int(folder.name),
        manifest=manifest,
        digest=hashlib.sha256(written).hexdigest(),
        device=engine.device,
        file_bytes=sum(sizes.values()),
        tensor_bytes=held,
        graphs=graphs,
        flash=flash,
        softmax=open_head_weights(engine) if flash else None,
        reader=TextTokenizer.of_query(manifest.text, contents),
        memory_reader=TextTokenizer.of_memory(manifest.text, contents),
    )


def _sizes(folder: Path, files: Iterable[str], max_bytes: int) -> dict[str, int]:
    """Return the sizes of all files that a manifest names, checked before any is read."""
    for name in files:
        if not NAME.fullmatch(name):
            raise RepositoryError(f"{MANIFEST} names the file {name!r}, which is no plain file name")
    sizes = {name: _size(folder, name) for name in files}
    if sum(sizes.values()) > max_bytes:
        raise RepositoryError(
            f"its files have {sum(sizes.values())} bytes; a version may have {max_bytes} (--max-version-mib)"
        )
    return sizes


def _read_verified(folder: Path, file: File, size: int) -> bytes:
    """Read a file that a manifest names, and compare it with its hash."""
    if size > LARGE:
        _check_hash(folder, file)
    content = _read(folder, file.name, size)
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise RepositoryError(DIFFERS.format(file.name))
    return content


def _check_hash(folder: Path, file: File) -> None:
    try:
        with (folder / file.name).open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise RepositoryError(f"{file.name} cannot be read: {error.strerror}") from error
    if found != file.sha256:
        raise RepositoryError(DIFFERS.format(file.name))


def _size(folder: Path, name: str) -> int:
    path = folder / name
    try:
        size = path.stat().st_size
    except OSError as error:
        raise RepositoryError(f"{name} cannot be read: {error.strerror}") from error
    if not path.is_file():  # a pipe would be read for ever
        raise RepositoryError(f"{name} is no regular file")
    return size


def _read(folder: Path, name: str, most: int) -> bytes:
    _size(folder, name)
    try:
        with (folder / name).open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise RepositoryError(f"{name} cannot be read: {error.strerror}") from error
    if len(content) > most:
        raise RepositoryError(f"{name} has more than {most} bytes, or grows while it is read")
    return content


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
