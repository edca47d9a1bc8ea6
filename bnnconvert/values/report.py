"""What the stages report. Plain frozen dataclasses, so that any of them turns into JSON with `asdict`."""

from dataclasses import dataclass
from typing import Any, Literal


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
    members: int = 1
    """Networks of an ensemble, trained one after another; steps, epochs and seconds are those of all."""
    metric: str = "accuracy"
    """What the fields called accuracy hold, as the task measures it."""


@dataclass(frozen=True)
class PackedLayerReport:
    """One binary layer of an artifact."""

    layer: str
    binary_weights: int
    """±1 weights, all planes counted."""
    weight_bytes: int
    other_bytes: int
    """Thresholds, scales and biases."""


@dataclass(frozen=True)
class EdgesReport:
    """What it costs to have the float layers at the ends in 8 bits."""

    layers: tuple[str, ...]
    samples: int
    split: str
    accuracy_float: float
    accuracy_int8: float
    """Both in [0, 1], on the same samples."""
    flipped: float
    """Share of the first binary layer's input bits that change."""


@dataclass(frozen=True)
class PredictedLayerReport:
    """What the predictor of one float layer did. Shares are in [0, 1]."""

    layer: str
    macs: int
    """Float multiply-adds of one sample where nothing is predicted; the predictor has as many binary ones."""
    avoided: float
    """Share of them that is not done, as the outputs are predicted not to be positive."""
    missed: float
    """Share of the positive outputs that are predicted not to be."""


@dataclass(frozen=True)
class PredictionReport:
    """What predictors save and cost, on samples that they were not calibrated on where there is a test set."""

    layers: tuple[PredictedLayerReport, ...]
    samples: int
    split: str
    accuracy_dense: float
    accuracy_predicted: float
    """Both in [0, 1], on the same samples."""


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote. Units: bytes; file_bytes = tensor_bytes + golden_bytes + header_bytes."""

    path: str
    predicted_bytes: int
    """Of the tensors, from the deployed student, before anything was written."""
    tensor_bytes: int
    golden_bytes: int
    header_bytes: int
    file_bytes: int
    float_bytes: int
    """Parameters and buffers of the float model."""
    golden_difference: float
    """Largest absolute difference between the reopened file and the student on the golden input."""
    layers: tuple[PackedLayerReport, ...]
    edges: EdgesReport | None = None
    predictions: PredictionReport | None = None


@dataclass(frozen=True)
class LayerFlips:
    """Input bits of one binary layer in which session and student differ."""

    layer: str
    bits: int
    flips: int
    boundary: int
    """Flips of values within rounding of a threshold."""
    first: int
    """Flips in samples that have no flip in an earlier layer; each of them must be at a boundary."""
    first_boundary: int
    accumulators: int
    inexact: int
    """Accumulators other than the student's layer gives for the session's own input bits; there may be none."""


@dataclass(frozen=True)
class VerifyReport:
    """Session against student."""

    samples: int
    agreement: float
    """Share of what `counted` says, in the first output; samples are weighed equally."""
    largest_difference: float
    differing_samples: int
    """Samples whose outputs differ by more than the tolerance."""
    unexplained_samples: int
    """Those of them that no flip at a boundary explains; more than none is a failure."""
    layers: tuple[LayerFlips, ...]
    isa: str | None = None
    """What the native engine ran on, whose outputs were compared with the portable ones, too."""
    engine_differing: int = 0
    engine_unexplained: int = 0
    """Those of them without a value at a boundary; more than none is a failure."""
    counted: str = "the same top-1 class"
    """What `agreement` is a share of."""

    @property
    def passed(self) -> bool:
        """Whether binary layers are exact and all other differences come from values within rounding of a threshold."""
        layers_hold = all(layer.inexact == 0 and layer.first == layer.first_boundary for layer in self.layers)
        return self.unexplained_samples == 0 and self.engine_unexplained == 0 and layers_hold

    @property
    def failure(self) -> str:
        """What is wrong, where it has not passed."""
        if self.engine_unexplained:
            return (
                f"the native engine ({self.isa}) differs from the portable one in {self.engine_unexplained:,} of "
                f"{self.samples:,} samples in a way that rounding does not explain"
            )
        wrong = next((f for f in self.layers if f.inexact), None)
        bad = next((f for f in self.layers if f.first > f.first_boundary), None)
        where = f"the outputs of {self.unexplained_samples:,} of {self.samples:,} samples"
        if wrong is not None:
            where = f"at {wrong.layer}, {wrong.inexact:,} accumulators are inexact"
        elif bad is not None:
            where = f"at {bad.layer}, {bad.first - bad.first_boundary:,} bits differ"
        return (
            f"it differs from its student in a way that rounding does not explain ({where}; outputs by up to "
            f"{self.largest_difference:.3g})"
        )


@dataclass(frozen=True)
class EvaluationReport:
    """Score of a run's student, an artifact or a float model on one split; for classifiers top-1, in [0, 1]."""

    accuracy: float
    samples: int
    kind: Literal["run", "artifact", "model"]
    target: str
    split: str
    seconds: float
    metric: str = "accuracy"
    """What `accuracy` holds: the score of the task."""


@dataclass(frozen=True)
class GoldenReport:
    """An artifact's output for its golden input, compared with the stored one."""

    largest_difference: float
    samples: int


@dataclass(frozen=True)
class Inspection:
    """What a model, a run or an artifact consists of, as plain data; each layer has a `name`."""

    kind: Literal["run", "artifact", "model"]
    name: str
    layers: tuple[dict[str, Any], ...]
    summary: dict[str, Any]


@dataclass(frozen=True)
class PeerTime:
    """What one run of a model takes in one runtime. Units: seconds."""

    name: str
    title: str
    median: float | None
    spread: float | None
    """Half of the range between the quartiles."""
    difference: float | None
    """From the float original's output in torch, in units of its largest magnitude; None for the artifact."""
    failure: str | None
    """Why there is no time."""


@dataclass(frozen=True)
class BenchLayer:
    """One layer of the artifact, all of its steps together. Units: seconds."""

    name: str
    how: str
    is_binary: bool
    """Whether its weights, or its weights and inputs, are binary."""
    seconds: float
    float_seconds: float | None
    """The same layer of the float original in torch, without batch norm and activation; None where it has none."""


@dataclass(frozen=True)
class BenchReport:
    """The artifact's speed beside that of its float original."""

    artifact: str
    isa: str | None
    threads: int
    batch: int
    rounds: int
    golden_difference: float
    peers: tuple[PeerTime, ...]
    layers: tuple[BenchLayer, ...]

    @property
    def slow_layers(self) -> tuple[str, ...]:
        """Binary layers that the float original is quicker at."""
        timed = ((x, x.float_seconds) for x in self.layers if x.is_binary)
        return tuple(x.name for x, seconds in timed if seconds is not None and seconds < x.seconds)
