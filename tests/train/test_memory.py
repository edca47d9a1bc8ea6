"""Freed memory stays in the process, or goes back: counted in pages, in a process of its own."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from bnnconvert.train.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

def step():
    tensors = [torch.ones(2**21) for _ in range(20)]

step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_a_later_step_asks_the_system_for_no_memory() -> None:
    def faults(mode: str) -> int:
        command = [sys.executable, "-W", "ignore", "-c", PROGRAM, mode]
        return int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout)

    pages = 5 * 20 * 2**23 // 4096
    kept = faults("keep")
    assert kept < pages / 50
    assert faults("default") > 10 * kept + 100  # at times glibc keeps one step's worth by itself


CONVERSION = """
import ctypes, sys
import torch
from bnnconvert.train.memory import return_freed_memory

class Info(ctypes.Structure):  # malloc.h, mallinfo2
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

if sys.argv[1] == "return":
    assert return_freed_memory()
once = torch.ones(2**21)
del once  # after which glibc puts tensors of this size into the heap
mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Info
before = mallinfo2().hblks
kept = torch.ones(2**21)
print(mallinfo2().hblks - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_a_large_tensor_has_pages_of_its_own_and_leaves_no_hole() -> None:
    def mapped(mode: str) -> int:
        command = [sys.executable, "-W", "ignore", "-c", CONVERSION, mode]
        return int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout)

    assert mapped("return") == 1
    assert mapped("default") == 0


TRAINING_IS_OVER = """
from pathlib import Path
import torch
from bnnconvert.train.memory import keep_freed_memory, return_kept_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

assert keep_freed_memory()
tensors = [torch.ones(2**21) for _ in range(40)]
last = torch.ones(2**10)  # holds the end of the heap, so that nothing before it goes back by itself
del tensors
before = resident()
assert return_kept_memory()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a function of glibc")
def test_what_a_training_kept_goes_back_at_its_end() -> None:
    command = [sys.executable, "-W", "ignore", "-c", TRAINING_IS_OVER]
    pages = int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout)
    assert pages > 0.9 * 40 * 2**23 / 4096
