"""TensorBoard events, where tensorboard is installed."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bnnconvert.values.report import EpochRecord


class Events:
    """Writes each epoch's numbers under `folder`; does nothing without a folder or without tensorboard."""

    def __init__(self, folder: Path | None, *, done_epochs: int) -> None:
        self._writer: Any = None
        if folder is not None and find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            # Epochs beyond the checkpoint that a run goes on from are run again: their events are void.
            self._writer = SummaryWriter(str(folder), purge_step=done_epochs + 1)

    def write(self, record: EpochRecord) -> None:
        """Write one epoch's numbers."""
        if self._writer is None:
            return
        numbers = {
            "loss/train": record.loss,
            "accuracy/train": record.train_accuracy,
            "accuracy/held-out": record.held_out_accuracy,
            "learning rate": record.lr,
        }
        numbers |= {f"flip ratio/{path}": value for path, value in record.flip_ratio.items()}
        numbers |= {
            f"dead channels/{path}": (dead.minus + dead.plus) / dead.channels
            for path, dead in record.dead_channels.items()
        }
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, record.epoch)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
