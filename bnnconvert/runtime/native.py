"""The native engine from Python: the C interface of `csrc/include/bnnconvert.h` through ctypes."""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bnnconvert.artifact.schema import Array


class _Step(ctypes.Structure):
    _fields_ = (("layer", ctypes.c_char_p), ("kernel", ctypes.c_char_p), ("tile", ctypes.c_char_p), ("seconds", ctypes.c_double))


def load_library(path: Path) -> ctypes.CDLL:
    """The shared library with the types of its functions."""
    library = ctypes.CDLL(str(path))
    engine, integer, floats = ctypes.c_void_p, ctypes.c_int64, ctypes.POINTER(ctypes.c_void_p)
    signatures = {
        "bnn_error": (ctypes.c_char_p, []),
        "bnn_isa": (ctypes.c_char_p, [ctypes.c_int]),
        "bnn_open": (ctypes.c_int, [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(engine)]),
        "bnn_close": (None, [engine]),
        "bnn_input_size": (integer, [engine, ctypes.c_int]),
        "bnn_output_size": (integer, [engine, ctypes.c_int]),
        "bnn_inputs": (ctypes.c_int, [engine]),
        "bnn_outputs": (ctypes.c_int, [engine]),
        "bnn_run": (ctypes.c_int, [engine, integer, floats, floats]),
        "bnn_steps": (ctypes.c_int, [engine]),
        "bnn_step_at": (_Step, [engine, ctypes.c_int]),
        "bnn_profile": (None, [engine, ctypes.c_int]),
        "bnn_memory": (integer, [engine]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class Engine:
    """An opened plan."""

    def __init__(self, library: ctypes.CDLL, plan: bytes, shapes: Sequence[tuple[int, ...]], *, threads: int, isa: str | None = None) -> None:
        self.library, self.shapes = library, shapes
        self.handle = ctypes.c_void_p()
        if library.bnn_open(plan, len(plan), threads, isa and isa.encode(), ctypes.byref(self.handle)):
            raise RuntimeError(library.bnn_error().decode())

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Outputs for any number of samples."""
        samples = len(inputs[0])
        outputs = [np.empty((samples, *shape), np.float32) for shape in self.shapes]
        given = (ctypes.c_void_p * len(inputs))(*(i.ctypes.data for i in inputs))
        wanted = (ctypes.c_void_p * len(outputs))(*(o.ctypes.data for o in outputs))
        if self.library.bnn_run(self.handle, samples, given, wanted):
            raise RuntimeError(self.library.bnn_error().decode())
        return outputs

    def steps(self) -> list[tuple[str, str, str, float]]:
        """Layer, kernel, tile and seconds of each step."""
        found = [self.library.bnn_step_at(self.handle, i) for i in range(self.library.bnn_steps(self.handle))]
        return [(s.layer.decode(), s.kernel.decode(), s.tile.decode(), s.seconds) for s in found]

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.library.bnn_close(self.handle)
