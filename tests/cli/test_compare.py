"""`bnnconvert compare` as typed, on scikit-learn's digits."""

import json
from pathlib import Path

import pytest
import torch

from bnnconvert.recipe import recipe_text
from tests.cli.conftest import Shell, small_net

LINE = ("compare", "model.pt", "--data", "digits", "--epochs", "1", "--device", "cpu", "--recipes")


@pytest.fixture
def compared(shell: Shell) -> Shell:
    torch.manual_seed(0)
    torch.save(small_net(), "model.pt")
    # A recipe that would leave everything float refuses the model, and stops nothing.
    text = recipe_text("xnor").replace('name = "xnor"', 'name = "wrong"')
    keep = '[[layers]]\nmatch = {}\nkeep = "nothing is wanted here"\n\n[training]'
    Path("wrong.toml").write_text(text[: text.index("[[layers]]")] + keep + text[text.index("[training]") + 10 :])
    shell.ok(*LINE, "xnor,wrong.toml,bwn")
    return shell


def test_recipes_are_compared_and_go_on_where_they_were_stopped(compared: Shell) -> None:
    found = json.loads(Path("compare/compare.json").read_text())
    by_name = {recipe["recipe"]: recipe for recipe in found["recipes"]}
    for name in ("xnor", "bwn"):
        figures = by_name[name]["figures"]
        assert figures["samples"] == 359
        assert figures["unexplained_samples"] == 0
        assert figures["packed"] == pytest.approx(figures["fine_tuned"], abs=0.01)
        assert figures["predicted_bytes"] == figures["tensor_bytes"] < found["float_bytes"]
        assert figures["step_ratio"] > 0.5
        assert found["milliseconds"][name] > 0
    assert by_name["wrong"]["figures"] is None
    assert "nothing is wanted here" in by_name["wrong"]["refusal"]
    table = Path("compare/table.md").read_text()
    assert table.count("\n") == 6
    assert "| 6.5, ResNet-20, CIFAR-10 |" in table
    assert Path("compare/plot.png").read_bytes().startswith(b"\x89PNG")

    # Stopped before one result was written: its fine-tuned run is taken up, the others' results are left alone.
    before = {path: path.stat().st_mtime_ns for path in Path("compare").glob("*.bnn/student.safetensors")}
    kept = Path("compare/bwn.json").stat().st_mtime_ns
    Path("compare/xnor.json").unlink()
    again = compared.json(*LINE, "xnor,wrong.toml,bwn")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert Path("compare/bwn.json").stat().st_mtime_ns == kept
    figures = next(recipe["figures"] for recipe in again["recipes"] if recipe["recipe"] == "xnor")
    assert figures["packed"] == by_name["xnor"]["figures"]["packed"]

    refused = compared.refused(*LINE[:5], "2", *LINE[6:], "xnor", code=2)
    assert "holds a comparison with epochs 1, not 2" in refused
    text = Path("wrong.toml").read_text()
    Path("wrong.toml").write_text(text + "\n# a comment\n")
    compared.json(*LINE, "wrong.toml")
    Path("wrong.toml").write_text(text.replace("nothing is wanted here", "something else"))
    assert "other settings of recipe 'wrong'" in compared.refused(*LINE, "wrong.toml", code=2)
    Path("compare/xnor.json").unlink()
    recipe = Path("compare/xnor.bnn/recipe.toml")
    recipe.write_text(recipe.read_text() + "\n[checks]\ndead_channels = 0.9\n")
    assert "other settings of recipe 'xnor'" in compared.refused(*LINE, "xnor", code=2)


def test_a_recipe_that_cannot_be_exported_has_figures_without_a_packed_file(shell: Shell) -> None:
    torch.manual_seed(0)
    torch.save(small_net(), "model.pt")
    shown = shell.ok(*LINE, "horq-patch").stdout
    found = json.loads(Path("compare/compare.json").read_text())
    (recipe,) = found["recipes"]
    assert recipe["refusal"].startswith("3: it trains and cannot be exported")
    assert recipe["figures"]["samples"] == 359
    assert recipe["figures"]["step_ratio"] > 0.5
    assert recipe["figures"]["packed"] is None
    assert recipe["figures"]["file_bytes"] is None
    assert found["milliseconds"] == {}
    assert "horq-patch: 3: it trains and cannot be exported" in shown
    assert not list(Path("compare").glob("*.packed.safetensors"))
    line = next(line for line in Path("compare/table.md").read_text().splitlines() if "horq-patch" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert all(cells[1:4])
    assert cells[4:9] == [""] * 5


def test_wrong_words_are_refused_before_anything_is_written(shell: Shell) -> None:
    torch.save(small_net(), "model.pt")
    assert "did you mean 'xnor'" in shell.refused(*LINE, "xnor,xnro", code=2)
    assert "comes twice" in shell.refused(*LINE, "xnor,xnor", code=2)
    assert "there is no such" in shell.refused(*LINE[:3], "nowhere", *LINE[4:], "xnor", code=2)
