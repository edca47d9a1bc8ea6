"""The curves of a recipe's estimators: one set per estimator, several moments where a schedule moves it."""

from pathlib import Path

import pytest

from bnnconvert.errors import UsageError
from bnnconvert.pipeline.curves import MOMENTS, recipe_curves
from bnnconvert.recipe import load_recipe, parse_recipe, recipe_names, recipe_text
from bnnconvert.values.curves import Curves


def curves_of(name: str) -> dict[str, Curves]:
    return {curves.title: curves for curves in recipe_curves(load_recipe(name))}


def has_estimator(name: str) -> bool:
    try:
        return bool(recipe_curves(load_recipe(name)))
    except UsageError:
        return False


def test_most_recipes_have_a_surrogate_gradient_and_quantizers_of_several_bits_have_none() -> None:
    without = {name for name in recipe_names() if not has_estimator(name)}
    assert {"dorefa", "fqn"} <= without
    assert len(without) < len(recipe_names()) / 2


@pytest.mark.parametrize("name", [name for name in recipe_names() if has_estimator(name)])
def test_every_recipe_has_curves_whose_surrogates_have_their_gradients(name: str) -> None:
    for curves in recipe_curves(load_recipe(name)):
        middle = len(curves.x) // 2
        assert curves.x[middle] == 0
        assert set(curves.forward) == {-1.0, 1.0}
        for moment in curves.moments:
            assert moment.surrogate[middle] == 0
            step = curves.x[middle + 1]
            slope = (moment.surrogate[middle + 1] - moment.surrogate[middle]) / step
            mean = (moment.gradient[middle + 1] + moment.gradient[middle]) / 2
            assert slope == pytest.approx(mean, rel=1e-3)


def test_operands_with_one_estimator_share_a_row_and_schedules_have_their_moments() -> None:
    (ede,) = curves_of("irnet").values()
    assert ede.title == "ede: weights (libra), inputs (sign)"
    assert tuple(moment.progress for moment in ede.moments) == MOMENTS
    middle = len(ede.x) // 2
    assert [m.gradient[middle] for m in ede.moments][::4] == pytest.approx([1, 10])


def test_different_estimators_have_rows_of_their_own_and_fixed_ones_one_moment() -> None:
    found = curves_of("bireal")
    assert list(found) == ["clip: weights (scaled-sign)", "approx-sign: inputs (sign)"]
    assert all(len(curves.moments) == 1 for curves in found.values())
    assert found["approx-sign: inputs (sign)"].moments[0].surrogate[-1] == pytest.approx(1, abs=1e-4)


def test_a_spike_is_resolved(tmp_path: Path) -> None:
    steep = tmp_path / "steep.toml"
    steep.write_text(recipe_text("self-binarizing").replace("end = 10.0", "end = 1000.0"), "utf-8")
    (tanh,) = curves_of(str(steep)).values()
    assert max(tanh.moments[-1].gradient) == pytest.approx(1000)
    assert [moment.surrogate[-1] for moment in tanh.moments[1:]] == pytest.approx([1] * 4, abs=1e-3)


def test_a_binarizer_that_learns_its_gradient_shows_what_it_starts_as() -> None:
    (dsq,) = curves_of("dsq").values()
    assert dsq.title == "dsq: weights (dsq), inputs (dsq)"
    middle = len(dsq.x) // 2
    assert dsq.moments[0].gradient[middle] == pytest.approx(1.3732654)


def test_a_recipe_of_float_layers_has_nothing_to_plot() -> None:
    head = recipe_text("xnor").split("[[layers]]")[0]
    recipe = parse_recipe(head + '[[layers]]\nkeep = "all of them"\n', where="test")
    with pytest.raises(UsageError, match="none to plot"):
        recipe_curves(recipe)
