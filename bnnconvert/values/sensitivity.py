"""What each layer costs when it is binary: plain data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """How far a network is from the teacher, on samples that nothing was fitted to."""

    divergence: float
    """Mean Kullback-Leibler divergence of its class distribution from the teacher's. Units: nats."""
    accuracy: float
    """Top-1, in [0, 1]."""


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer that the plan makes binary."""

    layer: str
    decision: str
    macs: int
    float_bytes: int
    packed_bytes: int
    alone_binary: Cost
    """The float network with this layer binary and no other."""
    alone_float: Cost
    """The student with this layer's operands float and all others binary."""


@dataclass(frozen=True)
class SensitivityReport:
    """Every binary layer of a run, each measured with batch norm re-estimated and nothing trained."""

    target: str
    recipe: str
    samples: int
    teacher_accuracy: float
    binary: Cost
    """The whole student as it stands."""
    layers: tuple[LayerSensitivity, ...]
