"""Batch norm in a run: frozen at what it knows, averaged over all that it sees, never estimated again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import bnnconvert
from bnnconvert.train.calibrate import set_batch_norm_momentum, train_mode
from bnnconvert.values.progress import Silent
from tests.networks import Residual, randomise
from tests.rarely import rarely
from tests.train.toys import STAGES, Stop, StopAt, make_data, make_student, run, same_weights

FROZEN = {"batch_norm_frozen": True, "batch_norm_batches": 0}


def statistics(student: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in student.state_dict().items() if "running" in name}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return bool(ours) and all(torch.equal(ours[name], theirs[name]) for name in ours)


class Look(Silent):
    """Remembers the statistics after each step."""

    def __init__(self, student: GraphModule) -> None:
        self.student, self.seen = student, list[dict[str, torch.Tensor]]()

    def step(self, *, step: int, loss: float, accuracy: float, seconds_left: float) -> None:
        self.seen.append(statistics(self.student))


def test_a_frozen_batch_norm_is_an_affine_map_that_learns_its_scale_and_shift() -> None:
    student, x = make_student(drop=0.0), torch.randn(8, 3, 8, 8)
    norm = student.get_submodule("stem_norm")
    norm.running_mean.fill_(0.5)
    norm.running_var.fill_(4.0)
    before = statistics(student)
    train_mode(student, frozen=True)
    assert student.get_submodule("conv").training
    entering: list[torch.Tensor] = []
    norm.register_forward_hook(lambda _, inputs, y: entering.append(y - (inputs[0] - 0.5) / (4 + norm.eps) ** 0.5))
    student(x).sum().backward()
    assert entering[0].abs().max() < 1e-6
    assert norm.weight.grad.abs().sum() > 0
    assert same(before, statistics(student))
    train_mode(student, frozen=False)
    student(x)
    assert not same(before, statistics(student))


def test_a_run_that_never_estimates_keeps_the_float_network_s_statistics() -> None:
    student = make_student()
    student.get_submodule("stem_norm").running_var.fill_(2.0)
    before, scale = statistics(student), student.get_submodule("stem_norm").weight.detach().clone()
    run(student=student, training=FROZEN | {"stages": STAGES})
    assert same(before, statistics(student))
    assert not torch.equal(scale, student.get_submodule("stem_norm").weight)


def test_frozen_statistics_move_where_a_stage_estimates_them_anew() -> None:
    student = make_student()
    look = Look(student)
    run(student=student, training={"batch_norm_frozen": True, "stages": STAGES}, progress=look)
    first, second = look.seen[:6], look.seen[6:]
    assert all(same(first[0], other) for other in first)
    assert all(same(second[0], other) for other in second)
    assert not same(first[0], second[0])


def test_cumulative_statistics_are_the_plain_average_of_the_batches() -> None:
    norm = nn.BatchNorm1d(3)
    set_batch_norm_momentum(norm, "cumulative")
    batches = [torch.randn(8, 3) + i for i in range(5)]
    for x in batches:
        norm(x)
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean(0) for x in batches]).mean(0))
    student, usual = make_student(), make_student()
    look, other = Look(student), Look(usual)
    run(student=student, training={"batch_norm_momentum": "cumulative"}, progress=look)
    run(student=usual, training={"batch_norm_momentum": 0.5}, progress=other)
    assert student.get_submodule("stem_norm").momentum is None
    assert not same(look.seen[-1], other.seen[-1])


@pytest.mark.parametrize("training", [FROZEN, {"batch_norm_frozen": True}, {"batch_norm_momentum": "cumulative"}])
@pytest.mark.parametrize("at", [9, *rarely(3)])
def test_such_runs_go_on_exactly(tmp_path: Path, at: int, training: dict[str, Any]) -> None:
    training = training | {"stages": STAGES}
    whole, _ = run(training=training)
    with pytest.raises(Stop):
        run(tmp_path, training=training, progress=StopAt(at), checkpoint_seconds=0.0)
    resumed, _ = run(tmp_path, training=training, resume=True)
    assert same_weights(whole, resumed)


def test_fqn_is_calibrated_under_the_float_network_s_statistics() -> None:
    module = randomise(Residual())
    student = bnnconvert.convert(module, "fqn", data=make_data()).model
    assert same(statistics(module), statistics(student))
    high = student.get_submodule("layer1.conv1.input_binarizer").bounds[1]
    data = make_data()
    x = data.inputs(data.train, torch.arange(len(data.train)))
    with torch.no_grad():
        entering = module.relu(module.bn1(module.conv1(x)))
    assert float(high) == pytest.approx(float(entering.quantile(0.999)), rel=0.2)
