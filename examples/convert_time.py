"""What `bnnconvert convert` takes for torchvision's classifiers, in seconds and memory, from the start of its process.

python examples/convert_time.py [NAME ...] [--recipe xnor] [--runs 1] [--preload MODULE] [--json]

Beside each conversion a process of its own imports torchvision, constructs the float model and runs it once. Weights
are random. --preload imports a module first, for installations in which torchvision does not import by itself. The
aims: three times that import and construction plus one forward pass; three times the parameters plus 500 MB.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

FLOAT = """
import time, torch, torchvision
net = torchvision.models.get_model({name!r}, weights=None).eval()
x = torch.rand({shape})
start = time.perf_counter()
with torch.no_grad():
    net(x)
print(time.perf_counter() - start, sum(p.numel() for p in net.parameters()))
"""
CONVERT = """
import sys
from bnnconvert.cli import main
sys.argv = ["bnnconvert", "convert", "torchvision.models:{name}", "--recipe", {recipe!r}, "--input-shape", {shape!r},
            "--out", {out!r}, "--json"]
main()
"""
TIMES, MORE_MB = 3, 500


@dataclass(frozen=True)
class Row:
    """Medians of one model. Units: seconds, megabytes; `float_s` is import and construction."""

    name: str
    convert_s: float
    float_s: float
    forward_s: float
    peak_mb: float
    parameters_mb: float

    @property
    def aim_s(self) -> float:
        """Seconds that a conversion may take."""
        return TIMES * self.float_s + self.forward_s

    @property
    def aim_mb(self) -> float:
        """Megabytes that a conversion may take."""
        return TIMES * self.parameters_mb + MORE_MB


def measured(code: str) -> tuple[float, float, str]:
    """Seconds and megabytes of a process that runs some code, and what it prints."""
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said, complaint = process.stdout.read(), process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"A process ended with {process.returncode}: {complaint}")
    return time.perf_counter() - start, used.ru_maxrss / 1024, said


def measure(name: str, recipe: str, runs: int, preload: str | None) -> Row:
    """Conversions and float processes of one model, in turns."""
    side = 299 if name == "inception_v3" else 224
    shape, first = f"1,3,{side},{side}", f"import {preload}\n" if preload else ""
    floats, forwards, converts, peaks, parameters = [], [], [], [], 0
    for _ in range(runs):
        seconds, _, said = measured(first + FLOAT.format(name=name, shape=shape))
        forward, parameters = float(said.split()[0]), int(said.split()[1])
        with tempfile.TemporaryDirectory() as folder:
            code = first + CONVERT.format(name=name, recipe=recipe, shape=shape, out=str(Path(folder) / "net.bnn"))
            took, peak, _ = measured(code)
        floats.append(seconds - forward), forwards.append(forward), converts.append(took), peaks.append(peak)
    medians = (statistics.median(values) for values in (converts, floats, forwards, peaks))
    return Row(name, *medians, parameters * 4 / 2**20)


def classifiers(preload: str | None) -> list[str]:
    """Names of torchvision's float classifiers."""
    listed = (f"import {preload}\n" if preload else "") + (
        "import torchvision\nprint(*torchvision.models.list_models(module=torchvision.models))"
    )
    return measured(listed)[2].split()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="models; by default all classifiers")
    parser.add_argument("--recipe", default="xnor")
    parser.add_argument("--runs", type=int, default=1, help="of each, medians are taken")
    parser.add_argument("--preload", metavar="MODULE", help="imported first")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = []
    for name in given.names or classifiers(given.preload):
        row = measure(name, given.recipe, given.runs, given.preload)
        rows.append(row)
        if not given.json:
            seconds = f"{row.convert_s:6.1f} s (aim {row.aim_s:5.1f})"
            print(f"{name:24} {seconds}  {row.peak_mb:6,.0f} MB (aim {row.aim_mb:6,.0f})", flush=True)
    if given.json:
        print(json.dumps([asdict(row) | {"aim_s": row.aim_s, "aim_mb": row.aim_mb} for row in rows], indent=1))
        return
    quick = sum(row.convert_s <= row.aim_s for row in rows)
    small = sum(row.peak_mb <= row.aim_mb for row in rows)
    print(f"{len(rows)} models: {quick} within the aim for seconds, {small} within that for memory.")


if __name__ == "__main__":
    main()
