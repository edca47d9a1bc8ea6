"""Plans whose numbers lie: the library says no, or runs them within its own memory. Sanitizers see the rest."""

import ctypes
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from bnnconvert.layers import operators
from bnnconvert.runtime import native
from bnnconvert.runtime.segments import parts_of
from tests.programs import HOST, Case, binary_networks, instruction_sets, int8_networks, masked_networks, program_of

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="installed without the native engine")
VALUES = [-(2**63), -1, 0, 1, 2, 3, 7, 31, 33, 63, 65, 255, 1000, 65535, 65536, 2**31, 2**40, 2**63 - 1]
FLOATS = program_of(
    lambda x, c: F.max_pool2d(F.prelu(x, c) + x, 3, 2, 1).mean((2, 3)), torch.randn(2, 20, 9, 7), torch.randn(20)
)
TOKENS = program_of(
    lambda x, w: (
        F.scaled_dot_product_attention(
            *F.linear(F.layer_norm(x, (20,)), w).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        )
        .transpose(1, 2)
        .flatten(2)
    ),
    torch.randn(2, 9, 20),
    torch.randn(24, 20),
)
SIGNS = program_of(
    lambda x, w: (
        operators.binary_attention(
            *F.linear(F.layer_norm(x, (20,)), w).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0),
            None,
            0.5,
            True,
        )
        .transpose(1, 2)
        .flatten(2)
    ),
    torch.randn(2, 9, 20),
    torch.randn(24, 20),
)
MOVES = program_of(
    lambda x, w: F.conv2d(F.conv2d(x, w, padding=1).unflatten(1, (4, 5)).transpose(1, 2).flatten(1, 2), w, padding=1),
    torch.randn(2, 20, 5, 7),
    torch.randn(20, 20, 3, 3),
)
MOST = 2**22
"""Elements that a test sends in or takes out."""


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(
    case=st.one_of(
        binary_networks(), int8_networks(), masked_networks(), st.sampled_from([FLOATS, TOKENS, SIGNS, MOVES])
    ),
    place=st.integers(0, 10**6),
    value=st.sampled_from(VALUES),
    data=st.data(),
)
def test_no_number_is_believed(case: Case, place: int, value: int, data: st.DataObject) -> None:
    words = np.frombuffer(_plan_of(case), np.int64).copy()
    index = place % len(words)
    assume(words[index] != value)
    words[index] = value
    if data.draw(st.booleans()):
        words = words[: data.draw(st.integers(1, len(words)))]
    _open_and_run(words.tobytes())


def _plan_of(case: Case) -> bytes:
    (part,), _ = parts_of(case.program, case.tensors)
    assert part.plan is not None
    return part.plan


def _open_and_run(plan: bytes) -> None:
    if HOST:
        return _on_host(plan)
    library = native.library()
    assert library is not None
    engine = ctypes.c_void_p()
    if library.bnn_open(plan, len(plan), 2, None, ctypes.byref(engine)):
        assert library.bnn_error()
        return None
    for name in ("bnn_inputs", "bnn_outputs", "bnn_input_size", "bnn_output_size"):
        function = getattr(library, name)
        function.argtypes = [ctypes.c_void_p, ctypes.c_int][: 1 + name.endswith("size")]
        function.restype = ctypes.c_int64
    try:
        given, made = (
            [np.zeros(size(engine, i), np.float32) for i in range(count(engine)) if size(engine, i) <= MOST]
            for count, size in (
                (library.bnn_inputs, library.bnn_input_size),
                (library.bnn_outputs, library.bnn_output_size),
            )
        )
        if len(given) == library.bnn_inputs(engine) and len(made) == library.bnn_outputs(engine):
            places = [
                (ctypes.c_void_p * max(1, len(arrays)))(*(a.ctypes.data for a in arrays)) for arrays in (given, made)
            ]
            assert library.bnn_run(engine, 1, *places) == 0
    finally:
        library.bnn_close(engine)
    return None


def _on_host(plan: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, given = Path(folder) / "plan", Path(folder) / "input"
        path.write_bytes(plan)
        given.write_bytes(b"")  # opening tunes, and so runs, each step
        done = subprocess.run(
            [*HOST, path, given, Path(folder) / "output"], check=False, capture_output=True, text=True
        )
        assert done.returncode in (0, 1), done.stderr
        assert "Sanitizer" not in done.stderr, done.stderr
        assert "runtime error" not in done.stderr, done.stderr
