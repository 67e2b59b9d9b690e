"""The folder of a model version: names of models, versions and files, and the files that a manifest refers to."""

import re
from collections.abc import Iterator

from google.protobuf import json_format
from google.protobuf.message import Message

from attention_proto.attention.v1.attention_pb2 import File, Manifest

MANIFEST = "manifest.json"
FORMAT = 1  # version of the manifest's form
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")  # of a model or a file
VERSION = re.compile(r"[1-9][0-9]{0,8}")
NEXT = "next_"  # `next_carry_0` takes the place of `carry_0`: in ONNX an input and a result have no common name


class UnreadableManifestError(ValueError):
    """A manifest cannot be read; the message is a predicate, to be put behind the file's name."""


def parse_manifest(content: bytes) -> Manifest:
    """Return the manifest in a file's content.

    Raises:
        UnreadableManifestError: the content is no JSON of the contract's form, of another format, or without layers.
    """
    try:
        manifest = json_format.Parse(content.decode(), Manifest())
    except (UnicodeDecodeError, json_format.ParseError) as error:
        raise UnreadableManifestError(f"cannot be read: {' '.join(str(error).split())}") from error
    if manifest.format != FORMAT:
        raise UnreadableManifestError(f"has format {manifest.format}; this program reads format {FORMAT}")
    if not manifest.layers:
        raise UnreadableManifestError("has no layers")
    return manifest


def tensor_name(result: str) -> str:
    """Return the name under which later graphs take a graph's result."""
    return result.removeprefix(NEXT)


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
