"""The allocator's habits while training on a CPU.

A step frees all activations at its end. glibc then gives their memory back to the system, which hands it out again,
page by page and zeroed, in the next step; kept in the process, a step of a small network takes a tenth less time.
"""

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for its next allocations; False where the C library has no such setting."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc
        return False
    settings = {_MMAP_THRESHOLD: 2**30, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**26}
    return all(mallopt(name, value) for name, value in settings.items())
