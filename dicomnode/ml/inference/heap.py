"""Memory of a network's passes that is kept from one pass to the next, instead of fetched anew.

The C library returns every large block to the system when it is freed. A network frees as many as it has
layers, and each new one is filled with zeros page by page before the first write: a fifth of the time of
a U-Net on the CPU. Here freed blocks stay with the process while an image is segmented, and go back
afterwards. Nothing happens where the C library is not glibc.
"""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

MIB = 2**20

# Names and values of malloc.h; see mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8
_USUAL_MMAP_MAX = 65536
_LARGEST_MMAP_THRESHOLD = 32 * MIB  # to which glibc raises it by itself
_NEVER = 2**31 - 1


@contextmanager
def kept() -> Iterator[None]:
    """Keep freed memory within the process meanwhile, and give it back to the system at the end."""
    library = _library()
    if library is None:
        yield
        return
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        library.mallopt(_MMAP_MAX, _USUAL_MMAP_MAX)
        library.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        library.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_MMAP_THRESHOLD)
        library.malloc_trim(0)


def use_one_heap() -> None:
    """Let all threads to come share one heap: only that one can keep large blocks.

    To be called before the threads are started that segment.
    """
    library = _library()
    if library is not None:
        library.mallopt(_ARENA_MAX, 1)


def _library() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
