"""What the stages report. Plain frozen dataclasses, so that any of them turns into JSON with `asdict`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DeadChannels:
    """Input channels of one binary layer whose sign never changes on a batch, by that sign."""

    channels: int
    minus: int
    plus: int


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch of fine-tuning came to. Accuracies are shares in [0, 1]; epochs and stages count from 1."""

    epoch: int
    stage: int
    step: int
    loss: float
    train_accuracy: float
    held_out_accuracy: float
    lr: float
    seconds: float
    flip_ratio: dict[str, float]
    """Share of each layer's weight signs that changed since the epoch before, by the layer's path."""
    dead_channels: dict[str, DeadChannels]


@dataclass(frozen=True)
class TrainReport:
    """What a fine-tuning run came to."""

    epochs: int
    steps: int
    best_epoch: int
    held_out_accuracy: float
    """Of the weights that the student now holds."""
    start_accuracy: float
    """Held-out accuracy of the fully binary student before the first step."""
    samples: int
    """Training samples, without the held-out ones."""
    held_out_samples: int
    seconds: float
    history: tuple[EpochRecord, ...]
