"""The folder of a model version: names of models, versions and files, and the files that a manifest refers to."""

import re
from collections.abc import Iterator

from google.protobuf.message import Message

from attention_proto.attention.v1.attention_pb2 import File

MANIFEST = "manifest.json"
FORMAT = 1  # version of the manifest's form
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")  # of a model or a file
VERSION = re.compile(r"[1-9][0-9]{0,8}")


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
