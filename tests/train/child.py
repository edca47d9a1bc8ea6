"""A run in a process of its own, which says each step: to be killed."""

import sys
from pathlib import Path

from bnnconvert.values.progress import Silent
from tests.train.toys import run


class Say(Silent):
    """One line a step."""

    def step(self, *, step: int, loss: float, accuracy: float, seconds_left: float) -> None:
        print(step, flush=True)  # noqa: T201


if __name__ == "__main__":
    run(Path(sys.argv[1]), training={"epochs": 40}, resume=True, checkpoint_seconds=0.0, progress=Say())
