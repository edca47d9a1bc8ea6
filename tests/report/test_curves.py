"""The picture of a recipe's surrogates: a row each, and one sentence for what cannot be drawn."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from bnnconvert.errors import UsageError
from bnnconvert.pipeline.curves import recipe_curves
from bnnconvert.recipe import load_recipe
from bnnconvert.report.curves import draw_curves


@pytest.mark.parametrize(("name", "rows"), [("irnet", 1), ("bireal", 2), ("self-binarizing", 1)])
def test_a_picture_grows_by_a_row_per_estimator(name: str, rows: int, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "curves.png"
    draw_curves(recipe_curves(load_recipe(name)), path, title=name)
    with Image.open(path) as picture:
        assert picture.size == (1200, round((3.2 * rows + 0.4) * 120))
        assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 20


def test_without_matplotlib_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match="needs matplotlib") as error:
        draw_curves(recipe_curves(load_recipe("irnet")), tmp_path / "curves.png", title="irnet")
    assert "pip install" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["curves.jpug", "nowhere/curves.png"])
def test_a_file_that_cannot_be_written_is_named(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(UsageError, match=f"--plot .*{name}"):
        draw_curves(recipe_curves(load_recipe("irnet")), tmp_path / name, title="irnet")
