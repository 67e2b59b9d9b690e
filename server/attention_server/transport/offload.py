"""Bounds on messages that are parsed, converted or written on the event loop; larger ones go to a thread."""

from collections.abc import Callable
from typing import TypeVar

from attention_proto.duplicates import count

from attention_server.domain.messages import Request
from attention_server.transport.threads import Threads

T = TypeVar("T")

# Up to these sizes the loop is busy for a few milliseconds.
INLINE_BYTES = 4 * 1024 * 1024
INLINE_SEQUENCES = 64
INLINE_TEXT_BYTES = 16 * 1024  # of a message with text, which is tokenized
INLINE_JSON_BYTES = 128 * 1024  # weighted, see `is_large_json`
NUMBER_BYTES = 24 + 8 + 8 + 8 + 4  # a float, its place in two lists, its float64 and its float32
CONTAINER_BYTES = 88 + 8  # a list or object, and its place
INLINE_JSON_TENSOR_BYTES = 256 * 1024  # of tensors that are written as JSON


def should_offload(size: int, sequences: int, *, text: bool = False) -> bool:
    """Return whether converting and validating a message takes long.

    Args:
        size: bytes of the message.
        sequences: number of sequences that are converted one by one.
        text: whether there is text to tokenize.
    """
    return size > (INLINE_TEXT_BYTES if text else INLINE_BYTES) or sequences > INLINE_SEQUENCES


async def submit_decoded(
    threads: Threads, size: int, sequences: int, decode: Callable[[], Request], submit: Callable[[Request], T]
) -> T:
    """Decode an attention request and submit it; on the loop, or in a thread from the first step that takes long.

    Args:
        threads: for long work.
        size: bytes of the message.
        sequences: number of inputs of the message, each of which may be several sequences.
        decode: decodes the message.
        submit: validates and submits a request, and tokenizes its texts.

    Returns:
        The result of `submit`.

    Raises:
        Full: all threads are busy.
        Exception: that of `decode` or `submit`.
    """
    if should_offload(size, sequences):
        return await threads.run(lambda: submit(decode()))
    request = decode()
    text = bool([True for each in request.inputs if each.has_text])
    if should_offload(size, len(request.inputs), text=text):
        return await threads.run(lambda: submit(request))
    return submit(request)


def is_large_json(document: bytes) -> bool:
    """Return whether decoding a JSON document takes long: a row or object takes as long as many bytes of numbers."""
    size = len(document)
    return (
        size > INLINE_JSON_BYTES or size + 128 * document.count(b"[") + 1024 * document.count(b"{") > INLINE_JSON_BYTES
    )


def parsed_json_bytes(document: bytes) -> int:
    """Return at least as many bytes as the parsed form of a JSON document takes.

    These are the texts, and each number, list and object with its place in lists and arrays.
    """
    containers = count(document, b"[") + count(document, b"{")
    return len(document) + NUMBER_BYTES * count(document, b",") + CONTAINER_BYTES * containers
