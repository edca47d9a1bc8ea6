"""What a packed artifact says about itself. FORMAT.md is normative; this file and it change together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from bnnconvert.values.program import Program, Record

FORMAT = "bnnconvert.packed"
MAJOR, MINOR = 1, 0
GOLDEN_INPUT = "golden:input"
GOLDEN_OUTPUT = "golden:output:{}"
GOLDEN = "golden:"
"""No parameter can be called so, because of the colon."""

MAX_HEADER = 2**26
MAX_DEPTH = 64
MAX_TENSORS = 2**16
MAX_ELEMENTS = 2**28
"""Elements of one value for one sample."""
MAX_WINDOW_BITS = 2**32
"""Output pixels times row bits, or bytes, of one convolution for one sample."""
MAX_EXTENT = 2**16
"""Kernel, stride, padding and dilation stay below this."""
MAX_K = 2**24
"""Row bits stay below this, so that sums are exact in float32."""

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
"""Element types by their safetensors names."""

Array = np.ndarray[Any, np.dtype[Any]]


def golden_input(number: int) -> str:
    """Name of a golden input; the first, which most files have alone, has no number."""
    return f"{GOLDEN_INPUT}:{number}" if number else GOLDEN_INPUT


class Normalisation(Record):
    """What was done to the data before the model saw it: divided by 255 (`uint8`) or nothing, then (x - mean) / std."""

    scale: Literal["uint8", "as-is"]
    mean: tuple[float, ...] = ()
    std: tuple[Annotated[float, Field(gt=0)], ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> "Normalisation":
        if len(self.mean) != len(self.std):
            raise ValueError("mean and std have different lengths")
        return self


class Metadata(Record):
    """Facts that no computation needs. Texts are stored as they are, the others as JSON."""

    producer: str = "bnnconvert"
    recipe: str = ""
    recipe_text: str = ""
    """The recipe file with all options as they were used."""
    source: str = ""
    """What the user converted."""
    source_sha256: str = ""
    normalisation: Normalisation | None = None
    classes: tuple[str, ...] | None = None
    metrics: dict[str, float] = Field(default_factory=dict)


TEXTS = ("producer", "recipe", "recipe_text", "source", "source_sha256")
"""Metadata that is stored as it is."""


@dataclass(frozen=True)
class Artifact:
    """A packed file in memory: the program, the tensors it reads, what it says about itself, and its golden pair."""

    program: Program
    tensors: Mapping[str, Array]
    metadata: Metadata
    golden_inputs: tuple[Array, ...]
    golden_outputs: tuple[Array, ...]
