"""What a peer has to say of itself. A peer is one file and one row of the table."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Predict = Callable[[Array], Array]


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
        """Load the model; the result maps an input batch to the first output."""

    def layers(self, x: Array) -> list[LayerTime]:
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
    def input(self) -> Path:
        """The input batch."""
        return self.folder / "input.npy"

    @property
    def reference(self) -> Path:
        """What the float original itself gives for the input batch."""
        return self.folder / "reference.npy"

    def output(self, peer: str) -> Path:
        """What a peer's run gave."""
        return self.folder / f"{peer}.npy"
