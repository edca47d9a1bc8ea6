"""The allocator's habits: in training what is freed is kept, in a conversion it goes back.

A training step on a CPU frees all activations at its end. glibc then gives their memory back to the system, which hands
it out again, page by page and zeroed, in the next step; kept in the process, a step of a small network takes a tenth
less time.

A conversion frees large tensors once, with small ones that stay between them: in one heap the holes add up. Each on
pages of its own leaves none, and the peak of a ViT-B/16 is 1.2 GB instead of 1.4 to 1.7. What is smaller is kept, up to
a quarter of a GB, without which the conversion of a ResNet-50 takes 3.1 s instead of 2.3.
"""

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for its next allocations; False where the C library has no such setting."""
    return _set({_MMAP_THRESHOLD: 2**30, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**26})


def return_freed_memory() -> bool:
    """Let this process give large tensors back when it frees them; False where the C library has no such setting."""
    return _set({_MMAP_THRESHOLD: 2**23, _TRIM_THRESHOLD: 2**28, _TOP_PAD: 2**26})


def return_kept_memory() -> bool:
    """Give back what `keep_freed_memory` kept, once the training is over; False where the C library cannot."""
    return _call("malloc_trim", 0)


def _set(settings: dict[int, int]) -> bool:
    return all(_call("mallopt", name, value) for name, value in settings.items())


def _call(name: str, *arguments: int) -> bool:
    try:
        return bool(getattr(ctypes.CDLL(None), name)(*arguments))
    except (OSError, AttributeError, TypeError):  # not glibc
        return False
