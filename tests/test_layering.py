"""Imports go down only, late imports included: what two stages share moves down, never sideways."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bnnconvert"
LAYERS: list[set[str]] = [
    {"errors", "bits"},
    {"values"},
    {"channels", "rounding"},
    {"recipe", "binarizers", "estimators", "gains", "tasks"},
    {"layers", "artifact", "graph", "shapes"},
    {"load", "trace", "plan", "rewrite", "train", "lower", "runtime"},
    {"bench", "exporters", "report"},
    {"pipeline"},
    {"cli"},
    {"__main__"},
]
"""From the bottom up; the parts of one layer do not import each other."""
NEIGHBOURS = {("binarizers", "estimators"), ("graph", "layers"), ("shapes", "graph"), ("shapes", "layers")}
"""Except these: a binarizer holds an estimator, and a graph knows its leaf modules."""
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported at any depth of the code."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            yield node.lineno, node.module
            # `from bnnconvert import pipeline` names a module behind the package.
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def imported_parts(path: Path) -> Iterator[tuple[int, str]]:
    for line, name in imported_modules(path):
        words = name.split(".")
        if words[0] == "bnnconvert" and len(words) > 1 and words[1] in RANK:
            yield line, words[1]


def test_every_part_has_its_layer() -> None:
    parts = {part_of(path) for path in FILES} - {"__init__"}
    assert parts == set(RANK)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    here = part_of(path)
    if here == "__init__":  # resolves names by string, on first use
        assert not list(imported_parts(path))
        return
    for line, other in imported_parts(path):
        allowed = other == here or RANK[other] < RANK[here] or (here, other) in NEIGHBOURS
        assert allowed, f"{path}:{line}: {here} imports {other}"


@pytest.mark.parametrize(
    ("package", "only"),
    [
        ("rich", {"cli/render.py"}),
        ("typer", {"cli"}),
        ("accelerate", {"train"}),
        ("matplotlib", {"report/figure.py"}),
        ("torchmetrics", {"tasks/base.py"}),
    ],
    ids=["rich", "typer", "accelerate", "matplotlib", "torchmetrics"],
)
def test_only_one_place_imports(package: str, only: set[str]) -> None:
    users = {
        path.relative_to(PACKAGE)
        for path in FILES
        for _, name in imported_modules(path)
        if name.split(".")[0] == package
    }
    assert users
    assert all(any(str(user).startswith(place) for place in only) for user in users), users


@pytest.mark.parametrize("package", ["torch", "accelerate", "torchmetrics"])
def test_report_and_recipe_need_no_torch(package: str) -> None:
    """`bnnconvert recipes` answers without it."""
    for path in FILES:
        if part_of(path) in ("report", "recipe", "errors", "cli"):
            assert all(name.split(".")[0] != package for _, name in imported_modules(path)), path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_eval_exec_or_print(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec", "print", "compile"}, f"{path}:{node.lineno}"
