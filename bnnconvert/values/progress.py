"""How a long job tells whoever watches where it stands. Only the command line knows how that looks."""

from typing import Protocol

from bnnconvert.values.report import EpochRecord, TrainReport


class Progress(Protocol):
    """Callbacks of a fine-tuning run, called on the main process only."""

    def start(self, *, total_steps: int, done_steps: int, epochs: int) -> None:
        """The run begins, or goes on after `done_steps`."""

    def step(self, *, step: int, loss: float, accuracy: float, seconds_left: float) -> None:
        """One optimizer step is done; loss and accuracy are means over the epoch so far."""

    def epoch(self, record: EpochRecord) -> None:
        """One epoch is done and measured on held-out data."""

    def note(self, message: str) -> None:
        """Something that the user should know but that stops nothing."""

    def done(self, report: TrainReport) -> None:
        """The run is over; the student holds its best weights."""


class Silent:
    """Watches nothing."""

    def start(self, *, total_steps: int, done_steps: int, epochs: int) -> None:
        pass

    def step(self, *, step: int, loss: float, accuracy: float, seconds_left: float) -> None:
        pass

    def epoch(self, record: EpochRecord) -> None:
        pass

    def note(self, message: str) -> None:
        pass

    def done(self, report: TrainReport) -> None:
        pass
