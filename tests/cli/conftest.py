"""A command line in a folder of its own, and small models and runs for it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from bnnconvert.cli.app import app


class Shell:
    """Types commands into the current folder."""

    def __init__(self) -> None:
        self.runner = CliRunner()

    def __call__(self, *words: str) -> Any:
        return self.runner.invoke(app, list(words), prog_name="bnnconvert")

    def ok(self, *words: str) -> Any:
        result = self(*words)
        assert result.exit_code == 0, result.output
        return result

    def json(self, *words: str) -> Any:
        """The one JSON value on standard output."""
        return json.loads(self.ok(*words, "--json").stdout)

    def refused(self, *words: str, code: int) -> str:
        """The sentence on standard error; nothing on standard output, no traceback, nothing new in the folder."""
        before = listing()
        result = self(*words)
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        assert listing() == before
        lines = [line for line in result.stderr.splitlines() if not line.startswith(("Run: ", "Input shape "))]
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("Error: ")
        assert "Unforeseen" not in lines[0]
        return lines[0]


def listing() -> dict[str, int]:
    """Every file below the current folder with its size; caches of imported modules apart."""
    return {
        str(path): path.stat().st_size if path.is_file() else -1
        for path in sorted(Path().rglob("*"))
        if "__pycache__" not in path.parts
    }


def small_net() -> nn.Sequential:
    """A convolutional network for grey 8x8 images, made of torch.nn classes."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    ).eval()


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return Shell()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which the three commands have run."""
    folder = tmp_path_factory.mktemp("finished")
    home = Path.cwd()
    os.chdir(folder)
    try:
        torch.save(small_net(), "model.pt")
        shell = Shell()
        shell.ok("convert", "model.pt", "--recipe", "xnor")
        shell.ok("finetune", "--data", "digits", "--epochs", "1", "--device", "cpu")
        shell.ok("export", "--packed")
    finally:
        os.chdir(home)
    return folder


@pytest.fixture
def done(finished: Path, shell: Shell) -> Shell:
    """A command line in a copy of a folder in which the three commands have run."""
    shutil.copytree(finished, Path.cwd(), dirs_exist_ok=True)
    return shell


@pytest.fixture
def model(shell: Shell) -> Callable[[nn.Module], None]:
    """Writes model.pt."""
    return lambda module: torch.save(module, "model.pt")
