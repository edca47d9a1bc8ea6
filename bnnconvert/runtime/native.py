"""The native engine from Python: the C interface of `csrc/include/bnnconvert.h` through ctypes.

A call costs about two microseconds on top of the engine's own time, and the library needs no Python to be built.
"""

import ctypes
import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import bnnconvert.runtime
from bnnconvert.artifact.schema import Array
from bnnconvert.errors import ArtifactError, UsageError

NAMES = ("libbnnconvert.so", "libbnnconvert.dylib")
Shapes = Sequence[tuple[int, ...]]
_BAD_CALL = 2  # bnnconvert.h
ISA = "BNNCONVERT_ISA"
"""Environment variable: the highest instruction set to use."""


class _Step(ctypes.Structure):
    _fields_ = (
        ("layer", ctypes.c_char_p),
        ("kernel", ctypes.c_char_p),
        ("tile", ctypes.c_char_p),
        ("seconds", ctypes.c_double),
    )


_ENGINE, _FLOATS = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
_SIGNATURES = {
    "bnn_error": (ctypes.c_char_p, []),
    "bnn_isa": (ctypes.c_char_p, [ctypes.c_int]),
    "bnn_open": (
        ctypes.c_int,
        [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_ENGINE)],
    ),
    "bnn_close": (None, [_ENGINE]),
    "bnn_run": (ctypes.c_int, [_ENGINE, ctypes.c_int64, _FLOATS, _FLOATS]),
    "bnn_steps": (ctypes.c_int, [_ENGINE]),
    "bnn_step_at": (_Step, [_ENGINE, ctypes.c_int]),
    "bnn_profile": (None, [_ENGINE, ctypes.c_int]),
    "bnn_memory": (ctypes.c_int64, [_ENGINE]),
    "bnn_peak": (ctypes.c_double, [ctypes.c_char_p]),
    "bnn_clock": (ctypes.c_double, []),
}
"""Functions that are called from here."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The shared library, or None where the package was installed without it."""
    for folder in bnnconvert.runtime.__path__:
        for name in NAMES:
            path = Path(folder) / name
            if path.exists():
                return _typed(ctypes.CDLL(str(path)))
    return None


def _typed(loaded: ctypes.CDLL) -> ctypes.CDLL:
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


def instruction_sets() -> list[str]:
    """Those that this machine and build have, best first; empty without a library."""
    loaded = library()
    if loaded is None:
        return []
    names: list[str] = []
    while (name := loaded.bnn_isa(len(names))) is not None:
        names.append(name.decode())
    return names


def peak(isa: str) -> float:
    """Binary multiply-adds a second of one thread on registers alone: the bound of a kernel without carry-save."""
    loaded = library()
    return 0.0 if loaded is None else float(loaded.bnn_peak(isa.encode()))


def clock() -> float:
    """Cycles a second of the processor, as it runs now."""
    loaded = library()
    return 0.0 if loaded is None else float(loaded.bnn_clock())


def chosen_isa() -> str:
    """The best instruction set that the environment variable allows.

    Raises: UsageError where the variable names none of this machine's.
    """
    names, wanted = instruction_sets(), os.environ.get(ISA)
    if wanted is None:
        return names[0]
    if wanted not in names:
        raise UsageError(f"{ISA} is {wanted!r}; this machine has {', '.join(names)}")
    return wanted


@dataclass(frozen=True)
class StepTime:
    """One step of an engine. Units: seconds of the last run, over all samples."""

    layer: str
    kernel: str
    tile: str
    seconds: float


class RefusedPlan(Exception):
    """The library takes no such plan; the text says why."""


class Engine:
    """An opened plan. One call runs at a time.

    Shapes: those of its inputs and outputs for one sample, whose parts stand on the first axis.
    Raises: RefusedPlan, UsageError.
    """

    def __init__(self, plan: bytes, inputs: Shapes, outputs: Shapes, *, threads: int, isa: str) -> None:
        loaded = library()
        assert loaded is not None, "whoever opens an engine has looked for the library"
        self._library, self._inputs, self._outputs, self._handle = loaded, inputs, outputs, ctypes.c_void_p()
        status = loaded.bnn_open(plan, len(plan), threads, isa.encode(), ctypes.byref(self._handle))
        if status == _BAD_CALL:
            raise UsageError(f"the native engine does not open: {self._error()}")
        if status:
            raise RefusedPlan(self._error())

    def run(self, inputs: Sequence[Array], samples: int) -> list[Array]:
        """Outputs for any number of samples. Shapes: each input (N * parts, ...), contiguous float32."""
        for x, (parts, *rest) in zip(inputs, self._inputs, strict=True):
            if x.shape != (samples * parts, *rest):  # the library would read beyond its end
                raise ArtifactError(
                    f"a value has the shape {x.shape} where the program says {(samples * parts, *rest)}"
                )
        outputs = [np.empty((samples * parts, *rest), np.float32) for parts, *rest in self._outputs]
        given = (ctypes.c_void_p * len(inputs))(*(x.ctypes.data for x in inputs))
        wanted = (ctypes.c_void_p * len(outputs))(*(y.ctypes.data for y in outputs))
        if self._library.bnn_run(self._handle, samples, given, wanted):
            raise UsageError(self._error())
        return outputs

    @contextmanager
    def profiled(self) -> Iterator[None]:
        """Put a clock around each step for as long as the context lasts."""
        self._library.bnn_profile(self._handle, 1)
        try:
            yield
        finally:
            self._library.bnn_profile(self._handle, 0)

    def steps(self) -> list[StepTime]:
        """The steps in order."""
        count = self._library.bnn_steps(self._handle)
        found = (self._library.bnn_step_at(self._handle, number) for number in range(count))
        return [StepTime(s.layer.decode(), s.kernel.decode(), s.tile.decode(), s.seconds) for s in found]

    @property
    def memory(self) -> int:
        """Bytes of all values between the steps."""
        return int(self._library.bnn_memory(self._handle))

    def _error(self) -> str:
        return str(self._library.bnn_error().decode())

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.bnn_close(self._handle)
