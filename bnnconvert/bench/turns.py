"""Timing in turns: each peer runs for as long as the others before the next one does."""

import time
from collections.abc import Callable

LEAST_RUNS = 3


def turn(run: Callable[[], float], seconds: float) -> list[float]:
    """What the runs that a turn has room for return, three at least; those of its first third are not counted.

    Units: seconds.
    """
    start = time.perf_counter()
    while True:
        run()
        if time.perf_counter() - start >= seconds / 3:
            break
    found: list[float] = []
    while len(found) < LEAST_RUNS or time.perf_counter() - start < seconds:
        found.append(run())
    return found
