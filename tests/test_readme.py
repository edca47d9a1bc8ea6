"""The README is true: its commands parse, its Python runs, its table of recipes is that of recipes/."""

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import nn

import bnnconvert
from bnnconvert.binarizers.base import WeightBinarizer
from bnnconvert.cli.app import COMMANDS, app
from bnnconvert.estimators.clip import Clip
from bnnconvert.pipeline import check_recipe
from bnnconvert.recipe import load_recipe, parse_recipe, recipe_names, recipe_text
from bnnconvert.rewrite.base import Rewrite, Site
from bnnconvert.trace.tracer import trace
from bnnconvert.values.inputs import specs_of
from bnnconvert.values.plan import Plan

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = [(match[1], match[2]) for match in FENCE.finditer(README)]
SHELL = [block.replace("\\\n", " ") for language, block in BLOCKS if language == "bash"]
LINES = [line for block in SHELL for line in block.splitlines() if line.strip()]


def python_block(marker: str) -> str:
    (block,) = (block for language, block in BLOCKS if language == "python" and marker in block)
    return block


def words_of(line: str) -> list[str]:
    words = shlex.split(line, comments=True)
    return words[: words.index(">")] if ">" in words else words


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("bnnconvert ")])
def test_commands_parse(line: str) -> None:
    _, name, *words = words_of(line)
    assert name in COMMANDS
    program: Any = typer.main.get_command(app)
    command = program.commands[name]
    command.make_context(name, words)  # raises where an option is unknown or missing


def test_every_command_is_shown() -> None:
    shown = {words_of(line)[1] for line in LINES if line.startswith("bnnconvert ")}
    assert shown == set(COMMANDS)


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith(("bash ", "python "))])
def test_scripts_exist_and_know_their_options(line: str) -> None:
    _, script, *words = words_of(line)
    text = (ROOT / script).read_text("utf-8")
    assert all(f'"{word}"' in text for word in words if word.startswith("--"))


def test_the_three_commands_come_as_designed() -> None:
    typed = [" ".join(words_of(line)) for line in LINES]
    first = typed.index("bnnconvert convert model.pt --recipe xnor")
    assert typed[first + 1 : first + 3] == ["bnnconvert finetune --data DIR", "bnnconvert export --packed"]


def test_recipes_table_is_the_folder_s() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (.+?) \| (.+?) \|$", README, re.MULTILINE)
    recipes = [load_recipe(name) for name in recipe_names()]
    assert rows[: len(recipes)] == [(recipe.name, recipe.title, recipe.summary) for recipe in recipes]


def test_training_keys_go_with_any_recipe() -> None:
    (block,) = (block for language, block in BLOCKS if language == "toml" and "glorot" in block)
    for name in recipe_names():
        head, _, tail = recipe_text(name).partition("[training]")
        checks = tail.partition("[checks]")[2]
        recipe = parse_recipe(head + block + (f"[checks]{checks}" if checks else ""), where=name)
        check_recipe(recipe)
        assert recipe.training.optimizer.glorot


def test_python_api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 10)
    )
    names: dict[str, Any] = {"model": model.eval(), "x": torch.randn(4, 1, 8, 8)}
    exec(python_block("import bnnconvert\n\nstudent"), names)
    assert names["logits"].shape == (4, 10)
    assert Path("model.packed.safetensors").exists()


def module_of_block(marker: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The block as a file; its first line says where it would go."""
    block = python_block(marker)
    path = block.splitlines()[0].removeprefix("# ")
    assert (ROOT / path).parent.is_dir()
    (folder / "added.py").write_text(block)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(sys.modules, "added", sys)  # forgotten at the end of the test
    del sys.modules["added"]
    import importlib

    return vars(importlib.import_module("added"))


def test_adding_a_binarizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = module_of_block("class CentredSignWeight", tmp_path, monkeypatch)["CentredSignWeight"]
    assert issubclass(row, WeightBinarizer)
    monkeypatch.setitem(__import__("bnnconvert.binarizers", fromlist=["x"]).WEIGHT_BINARIZERS, "centred-sign", row)
    weight = torch.randn(3, 2, 3, 3, requires_grad=True)
    (plane,) = row(estimator=Clip()).planes(weight)
    assert set(plane.pm1.unique().tolist()) == {-1.0, 1.0}
    assert plane.scale.shape == (3,)
    plane.pm1.sum().backward()
    assert weight.grad is not None

    text = (ROOT / "recipes" / "xnor.toml").read_text("utf-8")
    old = 'weights = { name = "scaled-sign", scale_grad = "exact", estimator = "clip" }'
    assert old in text
    recipe = tmp_path / "mine.toml"
    recipe.write_text(text.replace(old, 'weights = { name = "centred-sign", estimator = "clip" }'))
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 10))
    student = bnnconvert.convert(model.eval(), str(recipe), input_shape=(1, 1, 8, 8))
    report = bnnconvert.export(student, tmp_path / "model.packed.safetensors")
    assert report.golden_difference < 1e-3


def test_adding_a_rewrite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = module_of_block("class GeluToRelu", tmp_path, monkeypatch)["GeluToRelu"]
    assert issubclass(row, Rewrite)
    rewrite, plan = row(), Plan(recipe="mine", inputs=specs_of((1, 4)), layers=())
    graph = trace(nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)), (torch.zeros(1, 4),))
    (site,) = rewrite.find(graph, plan)
    assert isinstance(site, Site)
    rewrite.apply(graph, site)
    assert not list(rewrite.find(graph, plan))
    assert isinstance(graph.get_submodule("1"), nn.ReLU)


def test_a_rule_with_a_predictor() -> None:
    (block,) = (block for language, block in BLOCKS if language == "toml" and "predict" in block)
    recipe = parse_recipe(recipe_text("bwn").replace("[[layers]]", f"{block}\n[[layers]]", 1), where="README")
    assert recipe.layers[0].predict == 0.01


def test_links_and_places_to_fill_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for path in re.findall(r"`((?:examples|bnnconvert|recipes|tests)/[\w./]*)`", README):
        assert (ROOT / path).exists(), path
    for name in ("cifar10-table", "step-time-table"):
        assert README.count(f"<!-- {name} -->") == README.count(f"<!-- /{name} -->") == 1
