"""Session: opens an artifact and runs it. Numpy in, numpy out; needs neither the user's code nor the run directory."""

import functools
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bnnconvert.artifact.reader import read
from bnnconvert.artifact.schema import Array, Artifact
from bnnconvert.errors import UsageError, VerificationError
from bnnconvert.runtime import native
from bnnconvert.runtime.executor import Executor
from bnnconvert.runtime.native import StepTime
from bnnconvert.values.outputs import as_plain
from bnnconvert.values.program import Output, ValueSpec

CHUNK_ELEMENTS = 2**22
"""Elements of the largest value that are computed at a time outside the engine, which keeps to its own pieces."""
MAX_CHUNK = 256
GOLDEN_TOLERANCE = 1e-3
"""Largest allowed difference to the golden output, in units of its largest magnitude, or of 1 where that is smaller."""

EngineChoice = Literal["auto", "native", "portable"]


class Session:
    """A loaded artifact.

    `threads` is the number that the engine uses, and torch for operators that the engine does not know.
    `engine` is `native`, `portable` (numpy and torch), or `auto`: native where the package was built with it.
    Several threads may call one session; their runs take turns.

    Raises: UsageError for a path that cannot be read, ArtifactError for a file that is not a sound artifact.
    """

    def __init__(self, path: str | Path | Artifact, threads: int = 1, engine: EngineChoice = "auto") -> None:
        if threads < 1:
            raise UsageError(f"Session: threads is {threads}; give at least 1")
        artifact, self.path = (path, "artifact") if isinstance(path, Artifact) else (read(path), str(path))
        self.threads = threads
        self.artifact, self.program, self.metadata = artifact, artifact.program, artifact.metadata
        self.isa = _isa(engine)
        self.executor = Executor(self.program, artifact.tensors, self.path, threads=threads, isa=self.isa)
        largest = max((spec.elements() for spec in self.program.specs().values()), default=1)
        self._chunk = max(1, min(MAX_CHUNK, CHUNK_ELEMENTS // max(1, largest)))
        self._portable: Executor | None = None
        self._turn = threading.Lock()

    @property
    def recipe(self) -> str:
        """Name of the recipe that the model was converted with."""
        return self.metadata.recipe

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the first input of one sample, batch axis included."""
        return self.program.inputs[0].sized(1)

    def run(self, *inputs: npt.ArrayLike) -> Any:
        """The model's output for any number of samples, structured as the model structures it.

        Shapes: each input (N, ...) of the type that the program declares.

        Raises: UsageError for another shape, type or number of inputs.
        """
        arrays = self._checked(inputs)
        count = len(arrays[0])
        names = list(dict.fromkeys(self.program.output.values()))
        parts: dict[str, list[Array]] = {name: [] for name in names}
        chunk = max(1, count) if self.executor.is_native else self._chunk
        with self._turn:
            for begin in range(0, count, chunk):
                values = self.executor.run([array[begin : begin + chunk] for array in arrays])
                for name in names:
                    parts[name].append(values[name])
        return structured(self.program.output, {name: self._joined(name, made) for name, made in parts.items()})

    def measure(self, *inputs: npt.ArrayLike) -> list[StepTime]:
        """Run once with a clock around each step."""
        with self._turn:
            return self.executor.measure(self._checked(inputs))

    def trace(self, *inputs: npt.ArrayLike) -> Mapping[str, Array]:
        """Every value of the program by name, for all samples at once, computed without the engine."""
        return self._oracle().run(self._checked(inputs), keep=True)

    def _oracle(self) -> Executor:
        if self.isa is None:
            return self.executor
        if self._portable is None:
            self._portable = Executor(self.program, self.artifact.tensors, self.path, threads=self.threads, isa=None)
        return self._portable

    def golden_difference(self) -> float:
        """Run the golden input and compare with the golden output; the largest absolute difference.

        Raises: VerificationError above the tolerance.
        """
        outputs = flattened(self.run(*self.artifact.golden_inputs))
        largest = 0.0
        for number, (actual, golden) in enumerate(zip(outputs, self.artifact.golden_outputs, strict=True)):
            difference, allowed = compare(actual, golden)
            if not difference <= allowed:
                raise VerificationError(
                    f"{self.path}: output {number} for the golden input is {difference:.3g} off the stored one "
                    f"({allowed:.3g} is allowed); this machine computes something else than the exporting one, "
                    "so please report it with both torch versions"
                )
            largest = max(largest, difference)
        return largest

    def _checked(self, inputs: Sequence[npt.ArrayLike]) -> list[Array]:
        specs = self.program.inputs
        if len(inputs) != len(specs):
            names = ", ".join(spec.name for spec in specs)
            raise UsageError(f"{self.path}: its inputs are {names}, and {len(inputs)} were given; give each of them")
        arrays = [self._checked_one(x, spec, len(specs) == 1) for x, spec in zip(inputs, specs, strict=True)]
        if len({len(array) for array in arrays}) > 1:
            counts = ", ".join(f"{spec.name} {len(array)}" for spec, array in zip(specs, arrays, strict=True))
            raise UsageError(f"{self.path}: its inputs have different numbers of samples ({counts}); give as many")
        return arrays

    def _checked_one(self, x: npt.ArrayLike, spec: ValueSpec, is_only: bool) -> Array:
        array, name = np.asarray(x), "the input" if is_only else f"input {spec.name!r}"
        if array.dtype.name != spec.dtype:
            raise UsageError(
                f"{self.path}: {name} is {array.dtype.name} and must be {spec.dtype}; convert it with astype"
            )
        if array.ndim != len(spec.shape) or array.shape != spec.sized(len(array)):
            wanted = ", ".join(["N", *map(str, spec.sized(1)[1:])])
            raise UsageError(
                f"{self.path}: {name} has shape {array.shape} and must have shape ({wanted}); reshape or resize it"
            )
        return np.ascontiguousarray(array)

    def _joined(self, name: str, arrays: list[Array]) -> Array:
        spec = self.program.specs()[name]
        return np.concatenate(arrays) if arrays else np.empty(spec.sized(0), spec.dtype)


def _isa(engine: EngineChoice) -> str | None:
    if engine == "portable":
        return None
    if native.library() is not None:
        return native.chosen_isa()
    missing = "this package was installed without its native engine, as no C++ compiler was found"
    if engine == "native":
        raise UsageError(f"Session: {missing}; install a compiler and then bnnconvert again")
    _warn_once(f"{missing}; binary layers run in numpy, many times slower")
    return None


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def structured(output: Output, values: Mapping[str, Array]) -> Any:
    """Values in the structure of the model's output."""
    items = [structured(item, values) for item in output.items]
    match output.kind:
        case "value":
            assert output.value is not None
            return values[output.value]
        case "none":
            return None
        case "dict":
            return dict(zip(output.keys, items, strict=True))
        case kind:
            return items if kind == "list" else tuple(items)


def flattened(output: Any) -> list[Any]:
    """Leaves of a structured output, left to right."""
    output = as_plain(output)
    if isinstance(output, dict):
        return [leaf for item in output.values() for leaf in flattened(item)]
    if isinstance(output, list | tuple):
        return [leaf for item in output for leaf in flattened(item)]
    return [] if output is None else [output]


def compare(actual: Array, expected: Array) -> tuple[float, float]:
    """Largest absolute difference and the allowed one; NaN where only one side has a NaN or an infinity."""
    a, e = actual.astype(np.float64), expected.astype(np.float64)
    same = (a == e) | (np.isnan(a) & np.isnan(e))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(a - e)).max(initial=0.0)
    finite = np.abs(e[np.isfinite(e)]).max(initial=1.0)
    return float(difference), GOLDEN_TOLERANCE * float(finite)
