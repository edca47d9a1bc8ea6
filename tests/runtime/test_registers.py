"""Instructions that not every machine has stay in the files that are compiled for them.

An inline function or template of a header could be compiled with AVX-512 in one file and be the copy that the linker
keeps for all. The library keeps its symbols, so each function can be traced to its file.
"""

import platform
import re
import shutil
import subprocess
from collections import defaultdict

import pytest

from bnnconvert.runtime import native

ALLOWED = {"avx512.cpp": ("xmm", "ymm", "zmm"), "avx2.cpp": ("xmm", "ymm")}
"""Register names that AVX instructions of a file may have."""

pytestmark = [
    pytest.mark.skipif(native.library() is None, reason="installed without the native engine"),
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="not an x86 machine"),
    pytest.mark.skipif(not (shutil.which("objdump") and shutil.which("readelf")), reason="needs binutils"),
]


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def path() -> str:
    library = native.library()
    assert library is not None
    return str(library._name)


@pytest.fixture(scope="module")
def files(path: str) -> dict[int, str]:
    """File of each function by its address; what other files may call has none."""
    current, found = "", {}
    for line in output("readelf", "-sW", path).splitlines():
        words = line.split()
        if len(words) < 8:
            continue
        _, value, _, kind, binding, _, _, name = words[:8]
        if kind == "FILE":
            current = name
        elif kind == "FUNC":
            found[int(value, 16)] = current if binding == "LOCAL" else ""
    return found


@pytest.fixture(scope="module")
def registers(path: str, files: dict[int, str]) -> dict[str, set[str]]:
    """Kinds of registers that the AVX instructions of each file name."""
    used: dict[str, set[str]] = defaultdict(set)
    file = ""
    for line in output("objdump", "-d", "--no-show-raw-insn", path).splitlines():
        if header := re.match(r"([0-9a-f]+) <.*>:$", line):
            file = files.get(int(header[1], 16), "")
        elif (instruction := line.partition("\t")[2]).startswith("v"):
            used[file] |= set(re.findall(r"%([xyz]mm)", instruction))
    return used


def test_the_library_keeps_its_symbols(files: dict[int, str]) -> None:
    assert {"avx512.cpp", "avx2.cpp", "portable.cpp", "conv.cpp"} <= set(files.values())


def test_wide_instructions_stay_in_their_files(registers: dict[str, set[str]]) -> None:
    assert "zmm" in registers["avx512.cpp"]
    assert "ymm" in registers["avx2.cpp"]
    for file, kinds in registers.items():
        assert kinds <= set(ALLOWED.get(file, ())), file or "a function that several files share"
