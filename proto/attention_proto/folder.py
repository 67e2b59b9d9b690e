"""What a version's folder is made of, for who writes it and who serves it: names, and files that a manifest names."""

import re
from collections.abc import Iterator

from google.protobuf.message import Message

from attention_proto.attention.v1.attention_pb2 import File

MANIFEST = "manifest.json"
FORMAT = 1  # of the manifest
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")  # of a model, and of a file
VERSION = re.compile(r"[1-9][0-9]{0,8}")


def named_files(message: Message) -> Iterator[File]:
    """Yield every file that a manifest names, wherever it names it."""
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for part in [value] if isinstance(value, Message) else value:
            if isinstance(part, File):
                yield part
            else:
                yield from named_files(part)
