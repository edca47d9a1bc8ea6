"""The plan for hosts without Python: proved like the packed file, refused where it would be partial, run from C."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import bnnconvert
from bnnconvert.errors import RefusalError, VerificationError
from bnnconvert.exporters.plan import export_plan
from bnnconvert.runtime import native
from tests.students import Block, conv, trace

pytestmark = pytest.mark.skipif(native.library() is None, reason="installed without the native engine")
ROOT = Path(bnnconvert.__file__).parents[1]
X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def student():
    torch.manual_seed(0)
    return trace(Block())


def test_a_plan_computes_what_the_student_computes(student, tmp_path):
    report = export_plan(student, tmp_path / "net.plan", golden_input=X, teacher=student)
    assert report.file_bytes == (tmp_path / "net.plan").stat().st_size
    assert report.predicted_bytes == report.tensor_bytes < report.float_bytes
    assert report.golden_difference < 1e-5


def test_what_the_engine_does_not_know_is_named(tmp_path):
    student = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), conv(4, 4)))
    with pytest.raises(RefusalError, match=r"export: 1 would run outside the engine .*; give --packed"):
        export_plan(student, tmp_path / "net.plan", golden_input=X)
    assert not list(tmp_path.iterdir())


def test_a_plan_that_computes_something_else_is_not_written(student, tmp_path, monkeypatch):
    right = native.Engine.run
    monkeypatch.setattr(native.Engine, "run", lambda engine, *given: [y + 1 for y in right(engine, *given)])
    with pytest.raises(VerificationError, match=r"native engine .* differs .*; nothing was written"):
        export_plan(student, tmp_path / "net.plan", golden_input=X)
    assert not list(tmp_path.iterdir())


def built(source: Path, target: Path) -> Path:
    """A C program that is linked with the engine."""
    library = native.library()
    assert library is not None
    folder = Path(library._name).parent
    include = ROOT / "bnnconvert/runtime/csrc/include"
    links = [f"-L{folder}", "-lbnnconvert", f"-Wl,-rpath,{folder}"]
    strict = ["-std=c11", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["cc", source, *strict, f"-I{include}", *links, "-o", target], check=True)
    return target


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_a_host_in_c_runs_it(student, tmp_path):
    export_plan(student, tmp_path / "net.plan", golden_input=X)
    host = built(ROOT / "examples/host.c", tmp_path / "host")
    (tmp_path / "x").write_bytes(X.numpy().tobytes())
    for isa in native.instruction_sets():
        subprocess.run([host, tmp_path / "net.plan", tmp_path / "x", tmp_path / "y", "2", isa], check=True)
        with torch.no_grad():
            expected = student(X).numpy()
        actual = np.frombuffer((tmp_path / "y").read_bytes(), np.float32).reshape(expected.shape)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    (tmp_path / "bad").write_bytes((tmp_path / "net.plan").read_bytes()[:100])
    failed = subprocess.run([host, tmp_path / "bad", tmp_path / "x", tmp_path / "y"], capture_output=True, text=True)
    assert failed.returncode == 1
    assert "the plan ends too early" in failed.stderr


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is another one")
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="a sanitizer has replaced the allocator")
@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_run_allocates_no_memory(student, tmp_path, threads):
    export_plan(student, tmp_path / "net.plan", golden_input=X)
    program = built(ROOT / "tests/runtime/allocations.c", tmp_path / "allocations")
    opening, running = map(int, subprocess.check_output([program, tmp_path / "net.plan", threads]).split())
    assert opening > 10
    assert running == 0
