"""The folder of a model version: names of models, versions and files, and the files that a manifest refers to."""

import json
import re
from collections.abc import Iterator, Mapping

from google.protobuf import json_format
from google.protobuf.message import Message

from attention_proto.attention.v1.attention_pb2 import File, Manifest

MANIFEST = "manifest.json"
FORMAT = 2  # version of the manifest's form
TRANSFORMER = "transformer"  # the block of an imported checkpoint
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")  # of a model or a file
VERSION = re.compile(r"[1-9][0-9]{0,8}")
LOGITS = "logits"  # a result of a head
NEXT = "next_"  # `next_carry_0` takes the place of `carry_0`: in ONNX an input and a result have no common name


class UnreadableManifestError(ValueError):
    """A manifest cannot be read; the message is a predicate, to be put behind the file's name."""


def parse_manifest(content: bytes) -> Manifest:
    """Return the manifest in a file's content.

    Raises:
        UnreadableManifestError: the content is no JSON of the contract's form, of another format, or without layers.
    """
    try:
        written = json.loads(content)
        if isinstance(written, dict) and (found := written.get("format", 0)) != FORMAT:
            raise UnreadableManifestError(
                f"has format {found}; this program reads format {FORMAT}: write the version anew, by "
                f"`attention-export {_command(written)}`"
            )
        manifest = json_format.ParseDict(written, Manifest())
    except (ValueError, RecursionError, json_format.ParseError) as error:
        if isinstance(error, UnreadableManifestError):
            raise
        raise UnreadableManifestError(f"cannot be read: {' '.join(str(error).split())}") from error
    if not manifest.layers:
        raise UnreadableManifestError("has no layers")
    return manifest


def tensor_name(result: str) -> str:
    """Return the name under which later graphs take a graph's result."""
    return result.removeprefix(NEXT)


def _command(written: Mapping[str, object]) -> str:
    """Return the command that writes a version like that of a manifest."""
    if "quantization" in written:
        return "quantize"
    if "training" in written:
        return "train"
    return "import" if written.get("source") or len(list(_listed(written, "layers"))) > 1 else "block"


def _listed(written: Mapping[str, object], name: str) -> Iterator[object]:
    listed = written.get(name)
    yield from listed if isinstance(listed, list) else ()


def named_files(message: Message) -> Iterator[File]:
    """Yield every file in a manifest, at any depth."""
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for part in [value] if isinstance(value, Message) else value:
            if isinstance(part, File):
                yield part
            else:
                yield from named_files(part)
