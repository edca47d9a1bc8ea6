"""Session: opens an artifact and runs it. Numpy in, numpy out; needs neither the user's code nor the run directory."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bnnconvert.artifact.reader import read
from bnnconvert.artifact.schema import Array, Artifact
from bnnconvert.errors import UsageError, VerificationError
from bnnconvert.runtime.execute import load_torch, needs_torch, prepare
from bnnconvert.values.program import Output, Value

CHUNK_ELEMENTS = 2**22
"""Elements of the largest value that are computed at a time."""
MAX_CHUNK = 256
GOLDEN_TOLERANCE = 1e-3
"""Largest allowed difference to the golden output, in units of its largest magnitude, or of 1 where that is smaller."""

_torch_threads = threading.Lock()
"""Torch's number of threads belongs to the process, so only one session may set and restore it at a time."""


class Session:
    """A loaded artifact.

    `threads` is the number that torch may use for float operators; packed operators run on one.
    Several threads may call one session; their runs take turns where torch is needed.

    Raises: UsageError for a path that cannot be read, ArtifactError for a file that is not a sound artifact.
    """

    def __init__(self, path: str | Path | Artifact, threads: int = 1) -> None:
        if threads < 1:
            raise UsageError(f"Session: threads is {threads}; give at least 1")
        artifact, self.path = (path, "artifact") if isinstance(path, Artifact) else (read(path), str(path))
        self.threads = threads
        self.artifact, self.program, self.metadata = artifact, artifact.program, artifact.metadata
        self._uses_torch = needs_torch(self.program)
        self._calls = prepare(self.program, artifact.tensors, self.path)
        self._dead = self._last_uses()
        largest = max((spec.elements() for spec in self.program.specs().values()), default=1)
        self._chunk = max(1, min(MAX_CHUNK, CHUNK_ELEMENTS // max(1, largest)))

    @property
    def recipe(self) -> str:
        """Name of the recipe that the model was converted with."""
        return self.metadata.recipe

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of an input of one sample, batch axis included."""
        return self.program.inputs[0].sized(1)

    def run(self, x: npt.ArrayLike) -> Any:
        """The model's output for any number of samples, structured as the model structures it.

        Shapes: x (N, ...) of the program's input type.

        Raises: UsageError for another shape or type.
        """
        array = self._checked(x)
        names = list(dict.fromkeys(self.program.output.values()))
        parts: dict[str, list[Array]] = {name: [] for name in names}
        with self._torch_on_threads():
            for begin in range(0, len(array), self._chunk):
                values = self._execute(array[begin : begin + self._chunk], keep=False)
                for name in names:
                    parts[name].append(values[name])
        return structured(self.program.output, {name: self._joined(name, arrays) for name, arrays in parts.items()})

    def trace(self, x: npt.ArrayLike) -> Mapping[str, Array]:
        """Every value of the program by name, for all samples at once."""
        array = self._checked(x)
        with self._torch_on_threads():
            return self._execute(array, keep=True)

    def golden_difference(self) -> float:
        """Run the golden input and compare with the golden output; the largest absolute difference.

        Raises: VerificationError above the tolerance.
        """
        outputs = flattened(self.run(self.artifact.golden_input))
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

    def _checked(self, x: npt.ArrayLike) -> Array:
        spec = self.program.inputs[0]
        array = np.asarray(x)
        if array.dtype.name != spec.dtype:
            raise UsageError(
                f"{self.path}: the input is {array.dtype.name} and must be {spec.dtype}; convert it with astype"
            )
        if array.ndim != len(spec.shape) or array.shape != spec.sized(len(array)):
            wanted = ", ".join(["N", *map(str, spec.sized(1)[1:])])
            raise UsageError(
                f"{self.path}: the input has shape {array.shape} and must have shape ({wanted}); reshape or resize it"
            )
        return np.ascontiguousarray(array)

    def _execute(self, x: Array, *, keep: bool) -> dict[str, Array]:
        values = {self.program.inputs[0].name: x}
        for node, call, dead in zip(self.program.nodes, self._calls, self._dead, strict=True):
            results = call(values, len(x))
            values |= {spec.name: result for spec, result in zip(node.outputs, results, strict=True)}
            if not keep:
                for name in dead:
                    del values[name]
        return values

    def _last_uses(self) -> list[list[str]]:
        """For each node, the values that nobody needs after it."""
        seen = set(self.program.output.values())
        dead: list[list[str]] = []
        for node in reversed(self.program.nodes):
            names = dict.fromkeys(
                [*(s.name for s in node.outputs), *(r.value for r in node.references() if isinstance(r, Value))]
            )
            dead.append([name for name in names if name not in seen])
            seen.update(names)
        return dead[::-1]

    def _joined(self, name: str, arrays: list[Array]) -> Array:
        spec = self.program.specs()[name]
        return np.concatenate(arrays) if arrays else np.empty(spec.sized(0), spec.dtype)

    @contextmanager
    def _torch_on_threads(self) -> Iterator[None]:
        """Give torch this session's number of threads, and its own one back afterwards."""
        if not self._uses_torch:
            yield
            return
        torch = load_torch(self.path)
        with _torch_threads:
            before = torch.get_num_threads()
            try:
                torch.set_num_threads(self.threads)
                yield
            finally:
                torch.set_num_threads(before)


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
