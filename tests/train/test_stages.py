"""Stages that lose bits one after the other, and stages that freeze weights group by group."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.fx import GraphModule

from bnnconvert.errors import UsageError
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.layers.levels import filter_levels
from bnnconvert.recipe import parse_recipe, recipe_text
from bnnconvert.train.latent import clip_latent, freeze_weights, held_weights, set_stage
from bnnconvert.values.progress import Silent
from bnnconvert.values.recipe import Training
from tests.rarely import rarely
from tests.train.toys import Stop, StopAt, make_student, run, same_weights

BITS = [
    {"share": 0.3, "weights": 8, "inputs": 8},
    {"share": 0.3, "weights": 2, "inputs": 2},
    {"share": 0.4},
]
GROUPS = [
    {"share": 0.2, "weights": False, "frozen": 0.5},
    {"share": 0.3, "weights": False, "frozen": 0.75},
    {"share": 0.5, "frozen": 1.0},
]


def conv_of(student: GraphModule) -> BinaryLayer:
    layer = student.get_submodule("conv")
    assert isinstance(layer, BinaryLayer)
    return layer


def test_a_stage_of_bits_relaxes_both_operands() -> None:
    student = make_student(drop=0.0).train()
    set_stage(student, weights=2, inputs=3)
    layer, seen = conv_of(student), []
    layer.linear_map = lambda x, weight, one: seen.append((x, weight)) or torch.zeros(2, 8, 4, 4)  # type: ignore
    layer(torch.randn(2, 6, 8, 8))
    x, weight = seen[0]
    assert len(x.unique()) == 8
    assert torch.equal(weight, filter_levels(layer.weight, 2))
    set_stage(student, weights=False, inputs=True)
    assert torch.equal(layer.effective_weight(), layer.weight)
    assert (layer.weight_bits, layer.input_bits) == (None, None)


@pytest.mark.parametrize("stages", [BITS, GROUPS], ids=["bits", "groups"])
@pytest.mark.parametrize("at", [5, 11, *rarely(3, 7, 16)])
def test_such_stages_go_on_exactly_from_any_step(tmp_path: Path, at: int, stages: list[dict[str, Any]]) -> None:
    training = {"stages": stages, "schedule_spans": "stage", "gradient_clip": 1.0}
    whole, _ = run(training=training)
    with pytest.raises(Stop):
        run(tmp_path, training=training, progress=StopAt(at), checkpoint_seconds=0.0)
    resumed, _ = run(tmp_path, training=training, resume=True)
    assert same_weights(whole, resumed)
    assert not held_weights(resumed)


def test_freezing_takes_the_largest_of_each_filter_and_never_lets_go() -> None:
    student = make_student()
    layer = conv_of(student)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0].view(-1)[:4] = torch.tensor([0.8, -0.6, 0.4, 0.0])
    n = layer.weight[0].numel()
    level = 1.8 / n
    freeze_weights(student, 2 / n)
    assert layer.held is not None
    torch.testing.assert_close(layer.held[0].flatten()[:4], torch.tensor([level, -level, 0, 0]))
    # Frozen weights are now smaller than the free third one, which is next; they stay, and so does the level.
    freeze_weights(student, 3 / n)
    torch.testing.assert_close(layer.held[0].flatten()[:4], torch.tensor([level, -level, level, 0]))
    freeze_weights(student, 1.0)
    torch.testing.assert_close(layer.weight[0].abs(), torch.full_like(layer.weight[0], level))
    freeze_weights(student, 0)
    assert layer.held is None


def test_no_optimizer_step_moves_a_frozen_weight_and_no_gradient_reaches_it() -> None:
    student = make_student(drop=0.0).train()
    set_stage(student, weights=False, inputs=True)
    layer = conv_of(student)
    optimizer = torch.optim.SGD([layer.weight], lr=10.0, momentum=0.9, weight_decay=0.1)
    layer.weight.sum().backward()
    optimizer.step()  # momentum and decay pull on every weight
    freeze_weights(student, 0.5)
    assert layer.held is not None
    before, frozen = layer.weight.detach().clone(), layer.held != 0
    for _ in range(2):
        optimizer.zero_grad()
        student(torch.randn(2, 3, 8, 8)).sum().backward()
        assert layer.weight.grad is not None
        assert (layer.weight.grad[frozen] == 0).all()
        assert (layer.weight.grad[~frozen] != 0).any()
        optimizer.step()
        clip_latent(student)
    assert torch.equal(layer.weight[frozen], before[frozen])
    assert not torch.equal(layer.weight[~frozen], before[~frozen])


def test_after_the_last_group_no_weight_changes() -> None:
    student = make_student()
    seen: list[torch.Tensor] = []

    class Look(Silent):
        def step(self, *, step: int, loss: float, accuracy: float, seconds_left: float) -> None:
            seen.append(conv_of(student).weight.detach().clone())

    run(student=student, training={"stages": GROUPS, "optimizer": {"name": "adam", "lr": 0.05}}, progress=Look())
    assert len(seen) == 18
    assert not torch.equal(seen[0], seen[1])
    assert all(torch.equal(weight, seen[-1]) for weight in seen[9:])
    sizes = seen[-1].abs().flatten(1)
    assert torch.equal(sizes, sizes[:, :1].expand_as(sizes))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("[{ weights = 1 }]", "stages[0].weights: it must be true, false or a number of bits from 2 to 8"),
        ("[{ inputs = 9 }]", "stages[0].inputs: it must be true, false"),
        ('[{ inputs = "all" }]', "stages[0].inputs: it must be true, false"),
        ("[{ weights = 2 }]", "last stage must have binary"),
        ("[{ share = 0.5, frozen = 0.5 }, { share = 0.5 }]", "stages[0]: `frozen` below 1 is for"),
        ("[{ weights = false, frozen = 1.0 }]", "where all weights are frozen they are binary"),
        (
            "[{ share = 0.3, weights = false, frozen = 0.5 }, { share = 0.3, weights = false }, { share = 0.4 }]",
            "frozen weights stay frozen until all are binary, and 0 follows 0.5",
        ),
    ],
)
def test_stages_that_make_no_sense_name_the_key(stages: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_recipe(recipe_text("xnor") + f"\nstages = {stages}\n", where="mine.toml")
    assert message in str(error.value)


def test_weights_may_thaw_when_all_are_binary() -> None:
    Training.model_validate({"stages": [{"share": 0.5, "weights": False, "frozen": 0.9}, {"share": 0.5}]})
