"""What a peer has to say of itself. A peer is one file and one row of the table."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Predict = Callable[..., Array]
"""A map from the inputs to the first output."""


@dataclass(frozen=True)
class LayerTime:
    """One layer's share of a run; `how` says what ran it. Units: seconds."""

    layer: str
    how: str
    seconds: float


class Peer(ABC):
    """A runtime that takes part. Opened and run in a worker process, so it may import, crash or spin as it likes."""

    title: ClassVar[str]
    runs_float: ClassVar[bool] = True
    """Whether it runs the float original, and not the artifact."""
    tolerance: ClassVar[float] = 1e-3
    """Allowed difference from the float original's output, in units of its largest magnitude."""

    @abstractmethod
    def open(self, files: "Files", threads: int) -> Predict:
        """Load the model; the result maps the inputs, a batch of each, to the first output."""

    def layers(self, *inputs: Array) -> list[LayerTime]:
        """Run once with a clock around each layer; nothing where that cannot be seen."""
        return []


@dataclass(frozen=True)
class Files:
    """The folder that all workers share."""

    folder: Path

    @property
    def artifact(self) -> Path:
        """The packed artifact."""
        return self.folder / "artifact.packed.safetensors"

    @property
    def exported(self) -> Path:
        """The float original as torch.export saves it."""
        return self.folder / "original.pt2"

    @property
    def inputs(self) -> Path:
        """A batch of each input."""
        return self.folder / "inputs.npz"

    def read_inputs(self) -> list[Array]:
        """The inputs in their order."""
        with np.load(self.inputs) as stored:
            return [stored[name] for name in stored.files]

    @property
    def reference(self) -> Path:
        """What the float original itself gives for the input batch."""
        return self.folder / "reference.npy"

    def output(self, peer: str) -> Path:
        """What a peer's run gave."""
        return self.folder / f"{peer}.npy"
