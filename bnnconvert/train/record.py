"""What a run leaves in its folder, and whom it tells. Only the main process writes.

checkpoint.pt        everything that the rest of the run depends on; written last, so that a kill between two
                     files only repeats what the newer one already holds
best.safetensors     the student's state dict at its best held-out accuracy
metrics.jsonl        one object per epoch
tensorboard/         events, where tensorboard is installed
"""

import json
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor, nn

from bnnconvert.errors import ArtifactError
from bnnconvert.train.checkpoint import State, load_checkpoint, portable_state, save_checkpoint
from bnnconvert.train.events import Events
from bnnconvert.values.files import write_bytes, write_text
from bnnconvert.values.progress import Progress
from bnnconvert.values.report import EpochRecord, TrainReport
from bnnconvert.values.run import hold


class Recorder:
    """Writes a run's files into `folder`, if there is one, and calls `progress`.

    Raises: UsageError where another process writes into that folder.
    """

    def __init__(
        self, folder: Path | None, settings: dict[str, Any], *, main: bool, progress: Progress, every_seconds: float
    ) -> None:
        self.folder, self.settings, self.main, self.progress = folder, settings, main, progress
        self.every_seconds, self.saved_at = every_seconds, time.monotonic()
        self.best_state: dict[str, Tensor] | None = None
        self.events: Events | None = None
        self.held = ExitStack()
        if folder is not None and main:
            folder.mkdir(parents=True, exist_ok=True)
            self.held.enter_context(hold(folder))
            for stale in folder.glob(".checkpoint.pt.*.tmp"):
                stale.unlink()  # a kill in the middle of a write left it

    def resume(self) -> tuple[State, dict[str, Any]] | None:
        """State and parts of the folder's checkpoint; None where there is none yet."""
        path = None if self.folder is None else self.folder / "checkpoint.pt"
        if path is None or not path.exists():
            return None
        state, parts, differences = load_checkpoint(path, self.settings)
        if differences:
            self.note(f"The run goes on, but not bit for bit, as {'; '.join(differences)}.")
        return state, parts

    def start(self, state: State, *, total_steps: int, per_epoch: int) -> None:
        """Begin to report, `state` being where the run stands."""
        self.total_steps = total_steps
        self.started_at, self.started_step = time.monotonic(), state.step
        if self.main:
            epochs = -(-total_steps // per_epoch)
            self.events = Events(self.folder and self.folder / "tensorboard", done_epochs=len(state.history))
            self._write_metrics(state)
            self.progress.start(total_steps=total_steps, done_steps=state.step, epochs=epochs)

    def note(self, sentence: str) -> None:
        """Tell what stops nothing."""
        if self.main:
            self.progress.note(sentence)

    def step(self, state: State) -> None:
        """Tell of one optimizer step."""
        if self.main:
            pace = (time.monotonic() - self.started_at) / max(state.step - self.started_step, 1)
            left = pace * (self.total_steps - state.step)
            loss, accuracy = state.tally.mean_loss, state.tally.accuracy
            self.progress.step(step=state.step, loss=loss, accuracy=accuracy, seconds_left=left)

    def epoch(self, state: State, record: EpochRecord) -> None:
        """Write and tell one epoch's record."""
        if self.main:
            self._write_metrics(state)
            if self.events is not None:
                self.events.write(record)
            self.progress.epoch(record)

    def is_due(self) -> bool:
        """Whether a checkpoint should be written before the epoch ends."""
        return self.main and self.folder is not None and time.monotonic() - self.saved_at >= self.every_seconds

    def save(self, state: State, parts: dict[str, Any]) -> None:
        """Write the checkpoint."""
        if self.main and self.folder is not None:
            save_checkpoint(self.folder / "checkpoint.pt", state, parts=parts, settings=self.settings)
        self.saved_at = time.monotonic()

    def keep_best(self, student: nn.Module) -> None:
        """Remember the student as the best so far."""
        self.best_state = portable_state(student)
        if self.main and self.folder is not None:
            write_bytes(self.folder / "best.safetensors", save(self.best_state))

    def best(self) -> dict[str, Tensor]:
        """State dict of the best student, from this process or from the folder.

        Raises: ArtifactError where a finished run's file is gone.
        """
        if self.best_state is None:
            path = (self.folder or Path()) / "best.safetensors"
            if not path.exists():
                raise ArtifactError(f"{path}: missing beside its checkpoint; fine-tune again without --resume.")
            self.best_state = load_file(path)
        return self.best_state

    def done(self, report: TrainReport) -> None:
        """Tell that the run is over."""
        if self.main:
            self.progress.done(report)

    def close(self) -> None:
        """Close what is open."""
        if self.events is not None:
            self.events.close()
        self.held.close()

    def _write_metrics(self, state: State) -> None:
        """All lines anew: what was written after the checkpoint that a run goes on from is not repeated."""
        if self.folder is not None:
            lines = [json.dumps(asdict(record)) + "\n" for record in state.history]
            write_text(self.folder / "metrics.jsonl", "".join(lines))
