"""A version's folder, read and written: the manifest, and the block's matrices beside it."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnx.numpy_helper
from attention_proto.attention.v1.attention_pb2 import File, Layer, Manifest
from attention_proto.folder import MANIFEST, NAME, VERSION, UnreadableManifestError, named_files, parse_manifest
from google.protobuf import json_format
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from attention_export.blocks import BLOCKS, Dims, DotProduct, SelfAttention

SMALL = 1024  # bytes of a matrix that may stand twice without being counted


class ManifestError(ValueError):
    """A version's folder differs from its manifest."""


def new_version(repository: Path, name: str, version: int) -> Path:
    """Return the folder of a version to be written.

    Raises:
        ManifestError: the name or version is not valid in a repository.
        FileExistsError: the folder exists already.
    """
    if not NAME.fullmatch(name):
        raise ManifestError(f"{name!r} is no name for a model: letters, digits and _ . - behind the first, at most 128")
    if not VERSION.fullmatch(str(version)):
        raise ManifestError(f"{version} is no version: an integer from 1, of at most 9 digits")
    folder = repository / name / str(version)
    if folder.exists():
        raise FileExistsError(f"{folder} exists; versions are never overwritten: choose another, or remove it")
    return folder


@contextmanager
def version_folder(target: Path) -> Iterator[Path]:
    """Yield a scratch folder, which becomes `target` at the end; after an error nothing is left of it."""
    made = [folder for folder in (target.parent, target.parent.parent) if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory(dir=target.parent, prefix=".version-") as scratch:
            folder = Path(scratch) / "version"
            folder.mkdir()
            yield folder
            folder.rename(target)  # atomic
    finally:
        for folder in made:
            with suppress(OSError):  # it holds the version
                folder.rmdir()


def read_manifest(folder: Path) -> Manifest:
    """Read a manifest.

    Raises:
        ManifestError: it is missing or is no manifest of this format.
    """
    try:
        return parse_manifest((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise ManifestError(f"{folder / MANIFEST} cannot be read: {error}") from error
    except UnreadableManifestError as error:
        raise ManifestError(f"{folder / MANIFEST} {error}") from error


def read_files(folder: Path, manifest: Manifest) -> dict[str, bytes]:
    """Read every file that a manifest names.

    Raises:
        ManifestError: a file is missing, or its SHA-256 differs from the manifest's.
    """
    contents = {}
    for file in named_files(manifest):
        try:
            contents[file.name] = (folder / file.name).read_bytes()
        except OSError as error:
            raise ManifestError(f"{folder / file.name} cannot be read: {error.strerror}") from error
        if hashlib.sha256(contents[file.name]).hexdigest() != file.sha256:
            raise ManifestError(f"{folder / file.name} is not the file that its manifest names: its SHA-256 differs")
    return contents


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a manifest, keys sorted, so that equal manifests are equal files."""
    content = json_format.MessageToDict(manifest, preserving_proto_field_name=True)
    if manifest.HasField("training"):
        content["training"].setdefault("seed", 0)  # protobuf's JSON form omits zeros
    (folder / MANIFEST).write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def add_file(folder: Path, name: str, content: bytes) -> File:
    """Write a file of the folder; return its entry in the manifest."""
    (folder / name).write_bytes(content)
    return File(name=name, sha256=hashlib.sha256(content).hexdigest())


def describe_layer(block: DotProduct, name: str) -> Layer:
    """Return the layer's widths and constants."""
    dims = block.dims
    return Layer(
        name=name,
        heads=dims.heads,
        key_value_heads=dims.key_value_heads or dims.heads,
        query_dim=dims.query,
        key_dim=dims.key,
        value_dim=dims.value,
        head_dim=dims.head,
        value_head_dim=dims.value_head,
        output_dim=dims.output if hasattr(block, "M_O") else dims.heads * dims.value_head,
        scale=block.scale,
        softcap=block.softcap,
        zero_key=block.zero_key,
        stages=["output"],
    )


def doubled_bytes(folder: Path, manifest: Manifest) -> int:
    """Return the bytes of matrices that stand in several of a version's graphs, also transposed: all but the first."""
    names = dict.fromkeys(file.name for file in named_files(manifest) if file.name.endswith(".onnx"))
    seen: set[bytes] = set()
    doubled = 0
    for name in names:
        for tensor in onnx.load(folder / name).graph.initializer:
            content = onnx.numpy_helper.to_array(tensor)
            if content.ndim < 2 or content.nbytes <= SMALL:
                continue
            digest = min(hashlib.sha256(each.tobytes()).digest() for each in (content, content.T))
            doubled += content.nbytes if digest in seen else 0
            seen.add(digest)
    return doubled


def matrices(block: DotProduct) -> bytes:
    """Return the block's matrices as a safetensors file."""
    return save({name: matrix.detach().contiguous() for name, matrix in block.named_parameters()})


def read_block(folder: Path, manifest: Manifest, layer: Layer) -> DotProduct:
    """Build a layer's block from its matrices.

    Raises:
        ManifestError: the block is unknown, or the matrices do not have the manifest's widths.
    """
    if manifest.block not in BLOCKS:
        raise ManifestError(f"block {manifest.block!r} is none of {', '.join(BLOCKS)}")
    dims = Dims(
        query=layer.query_dim,
        key=layer.key_dim,
        value=layer.value_dim,
        heads=layer.heads,
        head=layer.head_dim,
        value_head=layer.value_head_dim,
        output=layer.output_dim,
        key_value_heads=layer.key_value_heads,
    )
    constants = {"scale": layer.scale, "softcap": layer.softcap}
    kind = BLOCKS[manifest.block]
    if not issubclass(kind, SelfAttention):
        return kind(dims, **constants)
    try:
        parameters = load_file(folder / layer.weights.name)
    except SafetensorError as error:
        raise ManifestError(f"{layer.weights.name} is no safetensors file: {error}") from error
    block = kind(dims, bias="b_Q" in parameters, **constants)
    block.zero_key = layer.zero_key
    try:
        block.load_state_dict(parameters)
    except RuntimeError as error:
        raise ManifestError(f"{layer.weights.name} does not fit the manifest: {error}") from error
    return block
