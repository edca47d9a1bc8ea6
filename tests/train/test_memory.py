"""Freed memory stays in the process: counted in page faults, in a process of its own."""

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
