from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bnnconvert
from bnnconvert.binarizers import build_weight_binarizer
from bnnconvert.errors import UsageError
from bnnconvert.exporters.verify import verify
from bnnconvert.layers.embedding import BinaryEmbedding
from bnnconvert.recipe import load_recipe
from bnnconvert.values.recipe import Match, Recipe, Rule

NUMBERS = torch.tensor([[0, 3, 3, 1], [6, 2, 0, 5]])


class Words(nn.Module):
    """Two tables, one of places, and what follows."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(7, 12, **settings), nn.Embedding(9, 12)
        self.one, self.two, self.head = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.norm = nn.LayerNorm(16)

    def forward(self, numbers: Tensor) -> Tensor:
        x = self.words(numbers) + self.places(torch.arange(numbers.shape[1]))
        y: Tensor = self.head(self.two(self.norm(self.one(x)).relu()).mean(1))
        return y


def with_tables(name: str, rule: Rule | None = None) -> Recipe:
    recipe = load_recipe(name)
    weights = next(r.weights for r in recipe.layers if r.weights is not None)
    made = rule or Rule(match=Match(kind=["embedding"]), weights=weights)
    others = [r.model_copy(update={"optional": True}) for r in recipe.layers]
    return recipe.model_copy(update={"layers": [made, *others]})


def test_tables_stay_float_unless_a_rule_names_them() -> None:
    plan = bnnconvert.convert(Words().eval(), "bwn", example_inputs=(NUMBERS,)).plan
    assert {p.facts.path for p in plan.layers if p.decision != "float"} == {"one", "two"}
    places = plan.layer("places")
    assert places is not None
    assert places.facts.macs == 0
    assert places.reason == 'table that is looked up; a rule with `kind = ["embedding"]`, or its path, makes it 1 bit'
    kept = with_tables("bwn", Rule(match=Match(path=["places"]), keep="few rows"))
    named = bnnconvert.convert(Words().eval(), kept, example_inputs=(NUMBERS,)).plan.layer("places")
    assert named is not None
    assert named.reason == "few rows"


def test_a_model_of_tokens_without_a_shape_is_told_how_to_give_one() -> None:
    with pytest.raises(
        UsageError, match=r"give the shape with --input-shape, for example 1,16:int64:7 for 16 tokens\.$"
    ):
        bnnconvert.convert(Words().eval(), "bwn")


@pytest.mark.parametrize("name", ["bwn", "xnor", "dorefa", "abcnet"])
def test_binary_tables_train_and_pack(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = bnnconvert.convert(Words(padding_idx=3).eval(), with_tables(name), example_inputs=(NUMBERS,))
    decisions = {p.facts.path: p.decision for p in student.plan.layers}
    assert decisions["words"] == decisions["places"] == "weight-only"
    student.model.train()(NUMBERS).square().sum().backward()
    grad = student.model.get_submodule("words").weight.grad
    assert isinstance(grad, Tensor)
    assert bool(grad[[0, 1, 2, 5, 6]].abs().sum(1).all())
    assert not bool(grad[[3, 4]].any())  # the padding's row, and one that is not looked up
    student.model.eval()
    file = tmp_path / "net.packed.safetensors"
    bnnconvert.export(student, file)
    session = bnnconvert.Session(file)
    actual = torch.from_numpy(session.run(NUMBERS.numpy()))
    torch.testing.assert_close(actual, student.model(NUMBERS).detach(), rtol=1e-4, atol=1e-5)
    assert verify(student.model, session, [NUMBERS]).unexplained_samples == 0
    with pytest.raises(UsageError, match="Row 7 of a table of 7 rows does not exist"):
        session.run(np.full((1, 4), 7))


def test_each_row_is_signs_times_its_own_mean_magnitude() -> None:
    torch.manual_seed(0)
    table = nn.Embedding(5, 6)
    weights = next(rule.weights for rule in load_recipe("bwn").layers if rule.weights is not None)
    binarizer = build_weight_binarizer(weights, (5, 6), where="test")
    layer = BinaryEmbedding.from_float(table, weight_binarizer=binarizer).eval()
    numbers = torch.tensor([[4, 1, 1]])
    rows = table.weight[numbers]
    expected = torch.where(rows >= 0, 1.0, -1.0) * rows.abs().mean(-1, keepdim=True)
    torch.testing.assert_close(layer(numbers), expected)
    torch.testing.assert_close(layer.train()(numbers), expected)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_norm": 1.0}, "its table is scaled while it is read (max_norm)"),
        ({"sparse": True}, "its table has sparse gradients"),
    ],
)
def test_tables_that_change_or_have_sparse_gradients_stay_float(settings: dict[str, Any], reason: str) -> None:
    plan = bnnconvert.convert(Words(**settings).eval(), with_tables("bwn"), example_inputs=(NUMBERS,)).plan
    words = plan.layer("words")
    assert words is not None
    assert words.reason == reason
