"""What every data source gives: a training set, perhaps a test set, the names of the classes."""

from dataclasses import dataclass
from typing import Literal

from bnnconvert.values.data import Samples
from bnnconvert.values.inputs import Inputs


@dataclass(frozen=True)
class Splits:
    """Data as a source found them, before statistics."""

    train: Samples
    test: Samples | None
    classes: tuple[str, ...] | None
    specs: Inputs
    """What a sample is."""
    scale: Literal["uint8", "as-is"] = "uint8"
