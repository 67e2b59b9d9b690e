"""Settings of the C library's memory allocator."""

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # as malloc.h has them
_KEPT = 2**25  # bytes; glibc takes no larger _MMAP_THRESHOLD


def keep_freed() -> None:
    """Let glibc keep freed memory for the next messages.

    By default glibc returns freed blocks above about 100 kB to the system and takes memory back page by page: a message
    of one megabyte then takes twenty times as long to write. Call it before the process starts threads. With another C
    library it does nothing.
    """
    with suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _KEPT)
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_ARENA_MAX, 2)  # each arena keeps as much


def give_back() -> None:
    """Let glibc return all freed pages to the system. With another C library it does nothing."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
