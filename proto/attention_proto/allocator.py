"""How this process's C library gives memory back."""

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # as malloc.h has them
_KEPT = 2**25  # bytes; glibc takes no larger _MMAP_THRESHOLD


def keep_freed() -> None:
    """Have glibc keep what messages leave, for the next ones.

    By itself it gives the system back what is larger than some 100 kB, and gets it again page by page: a message of a
    megabyte then takes twenty times as long to write. For a process whose business is messages, before its threads.
    """
    with suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _KEPT)
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_ARENA_MAX, 2)  # each keeps as much
