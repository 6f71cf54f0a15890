"""How the C library keeps freed memory; matters where every training step asks for the same large blocks again."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h
_BLOCK = 1 << 30


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed for the next request, in this process from now on; whether it could be asked to.

    By default it hands blocks above 32 MB back to the system, and each training step pays for new pages, zeroed one by
    one, again.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library, such as musl
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _BLOCK) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))
