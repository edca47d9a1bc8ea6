"""Help answers at once, because nothing heavy is imported before a command runs."""

import subprocess
import sys
import time

import pytest

from bnnconvert.cli.app import COMMANDS

HEAVY = {"torch", "numpy", "rich", "accelerate"}


def imported_by(*words: str) -> set[str]:
    program = (
        "import sys\n"
        "from bnnconvert.cli import main\n"
        f"sys.argv = ['bnnconvert', *{list(words)!r}]\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        "sys.stderr.write(' '.join(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "Usage: bnnconvert" in done.stdout
    return set(done.stderr.split())


def test_help_imports_nothing_heavy() -> None:
    assert not imported_by("--help") & (HEAVY | {"pydantic"})


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_imports_nothing_heavy(name: str) -> None:
    # Not even where typer itself has begun to use pydantic for a command's options.
    assert not imported_by(name, "--help") & HEAVY


def test_help_is_quick() -> None:
    # 0.3 s is the aim; a machine with other work gets three tries and some slack.
    command = [sys.executable, "-m", "bnnconvert", "--help"]

    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.6


def test_runtime_does_not_import_torch() -> None:
    program = "import sys, bnnconvert.runtime; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_version_is_the_package_s() -> None:
    from bnnconvert import __version__

    done = subprocess.run([sys.executable, "-m", "bnnconvert", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"bnnconvert {__version__}\n"
