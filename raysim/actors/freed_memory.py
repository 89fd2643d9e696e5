"""What training frees after each batch stays with its process, for the next batch."""

import ctypes
from contextlib import suppress

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # what <malloc.h> calls them, with M_ before
LARGEST_MMAP_THRESHOLD_BYTES = 32 * 2**20


def keep() -> None:
    """Have the C library keep freed memory; one that has no such choice (not glibc) is left as it is.

    By default glibc hands large blocks back to the system and gets them again page by page: thousands of page faults
    for the gradients and activations of one client.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD_BYTES)
        library.mallopt(TRIM_THRESHOLD, -1)
