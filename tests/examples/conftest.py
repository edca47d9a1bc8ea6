"""The examples as modules, importable from their own folder."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = tuple(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import an example; the current folder is empty, and the interpreter forgets the module afterwards."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        monkeypatch.setitem(sys.modules, name, sys)  # undone, that is forgotten, at the end of the test
        del sys.modules[name]
    return importlib.import_module
