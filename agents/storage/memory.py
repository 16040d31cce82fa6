"""Large buffers without page faults.

By default glibc gives the memory of every freed 1 MiB piece back to the kernel and asks for it again, zeroed page by
page, for the next one: a sixth of the processor time of a transfer (measured). Told once to keep some, it does not.
"""

from __future__ import annotations

import ctypes
import functools

KEPT_BYTES = 64 << 20
"""Free memory kept for the next pieces, at most, in each of glibc's arenas that transfers use."""
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


@functools.cache
def keep_buffers() -> bool:
    """Tell glibc, once in this process. False where there is no glibc; nothing else changes then."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    done = [mallopt(_M_MMAP_THRESHOLD, 8 << 20), mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES), mallopt(_M_TOP_PAD, 4 << 20)]
    return all(done)
