"""A teacher that trains along, and students that start anew: Apprentice's schemes A and B, guided training."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional as F

from bnnconvert.errors import UsageError
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.train.losses import Outputs
from bnnconvert.train.losses.mutual import Mutual
from bnnconvert.train.objective import Objective
from bnnconvert.train.scratch import start_anew
from bnnconvert.values.recipe import Loss
from tests.rarely import rarely
from tests.train.toys import STAGES, Stop, StopAt, make_student, make_teacher, run, same_weights

APPRENTICE = Loss.model_validate({"name": "distill", "temperature": 1.0, "labels": 0.5})
GUIDED = [Loss(name="cross-entropy"), Loss.model_validate({"name": "mutual", "weight": 0.5, "at": ["conv_norm"]})]
LABELS = torch.tensor([0, 1, 2, 0])


def gradients(losses: list[Loss], *, joint: bool = True) -> tuple[GraphModule, nn.Module, torch.Tensor]:
    """Student and teacher's copy after a backward pass, and the batch."""
    student, teacher = make_student(drop=0.0), make_teacher()
    teacher.get_submodule("drop").p = 0.0
    objective = Objective(losses, student, teacher, device=torch.device("cpu"), joint=joint)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    objective(student, x, LABELS, progress=0.0, check=True).loss.backward()
    objective.close()
    assert all(p.grad is None for p in teacher.parameters()), "the user's own model is left alone"
    assert objective.trained is not None
    return student, objective.trained, x


def test_apprentice_a_trains_the_teacher_by_the_labels_alone() -> None:
    _, teacher, x = gradients([APPRENTICE])
    twin = make_teacher().train()
    twin.get_submodule("drop").p = 0.0
    F.cross_entropy(twin(x), LABELS).backward()
    for (name, ours), (_, theirs) in zip(teacher.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda text, name=name: f"{name}: {text}")
    assert teacher.training


def test_the_student_s_gradient_is_that_of_a_constant_teacher() -> None:
    student, teacher, x = gradients([APPRENTICE])
    twin = make_student(drop=0.0)
    logits, targets = twin(x), teacher(x).detach().softmax(dim=1)
    (0.5 * F.cross_entropy(logits, LABELS) + 0.5 * F.cross_entropy(logits, targets)).backward()
    for ours, theirs in zip(student.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-4)


def test_mutual_in_closed_form_draws_each_to_the_other() -> None:
    loss = Mutual()
    ours = torch.tensor([[1.0, 2.0]], requires_grad=True)
    theirs = torch.tensor([[3.0, 2.5]], requires_grad=True)
    value = loss(Outputs(ours, LABELS[:1], theirs.detach()))
    value.backward()
    assert value.item() == pytest.approx((4 + 0.25) / 2)
    assert ours.grad is not None
    assert ours.grad.tolist() == [[-2.0, -0.5]]
    term = loss.teacher_term(Outputs(ours.detach(), LABELS[:1], theirs))
    assert term is not None
    term.backward()
    assert theirs.grad is not None
    assert theirs.grad.tolist() == [[2.0, 0.5]]


def test_mutual_compares_features_as_a_layer_of_few_bits_reads_them() -> None:
    loss = Mutual(at=["conv_norm"], bits=1)
    loss.features(make_student(), make_teacher())
    ours = torch.tensor([[-0.2, 0.4, 3.0, 0.1]], requires_grad=True)
    theirs = torch.tensor([[0.5, 0.1, -2.0, 0.7]], requires_grad=True)
    logits = torch.zeros(1, 2)

    def batch(a: torch.Tensor, b: torch.Tensor) -> Outputs:
        return Outputs(logits, LABELS[:1], logits, {"conv_norm": a}, {"conv_norm": b})

    value = loss(batch(ours, theirs.detach()))
    value.backward()
    assert value.item() == (4 + 0 + 4 + 0) / 4
    assert ours.grad is not None
    assert ours.grad.tolist() == [[-1, 0, 0, 0]]  # 2 (-1 - 1) / 4; beyond 1 there is none
    term = loss.teacher_term(batch(ours.detach(), theirs))
    assert term is not None
    term.backward()
    assert theirs.grad is not None
    assert theirs.grad.tolist() == [[1, 0, 0, 0]]
    two = Mutual(at=["conv_norm"], bits=2)
    two.features(make_student(), make_teacher())
    assert two(batch(ours, theirs)).item() == pytest.approx((4 / 9 + 0 + 4 + 4 / 9) / 4)
    with pytest.raises(UsageError, match="`bits` of 'mutual' are of features"):
        Mutual(bits=2)


def test_guided_training_adds_the_distance_to_both_losses_but_no_gradient_across() -> None:
    student, teacher, x = gradients(GUIDED)
    ours, theirs = make_student(drop=0.0), make_teacher().train()
    theirs.get_submodule("drop").p = 0.0
    seen: dict[nn.Module, torch.Tensor] = {}
    for model in (ours, theirs):
        model.get_submodule("conv_norm").register_forward_hook(lambda m, _, y, model=model: seen.update({model: y}))
    logits, targets = ours(x), theirs(x)
    for mine, other in ((ours, theirs), (theirs, ours)):
        z, t = (logits, targets.detach()) if mine is ours else (targets, logits.detach())
        distance = F.mse_loss(z, t) + F.mse_loss(seen[mine], seen[other].detach())
        (F.cross_entropy(z, LABELS) + 0.5 * distance).backward()
    for made, expected in ((student, ours), (teacher, theirs)):
        for a, b in zip(made.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("losses", [[APPRENTICE], GUIDED], ids=["apprentice", "guided"])
@pytest.mark.parametrize("at", [8, *rarely(5, 12)])
def test_a_run_with_its_teacher_goes_on_exactly_from_any_step(tmp_path: Path, at: int, losses: list[Loss]) -> None:
    training = {
        "losses": [loss.model_dump() for loss in losses],
        "teacher": "joint",
        "start": "scratch",
        "stages": STAGES,
        "schedule_spans": "stage",
        "gradient_clip": 1.0,
    }
    teacher = make_teacher()
    before = copy.deepcopy(teacher)
    whole, _ = run(training=training, teacher=teacher)
    assert same_weights(teacher, before)
    with pytest.raises(Stop):
        run(tmp_path, training=training, progress=StopAt(at), checkpoint_seconds=0.0)
    first = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["parts"]["others"][0]
    resumed, _ = run(tmp_path, training=training, resume=True)
    assert same_weights(whole, resumed)
    last = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["parts"]["others"][0]
    assert first.keys() == teacher.state_dict().keys()
    assert not torch.equal(first["stem.weight"], last["stem.weight"])


def test_a_student_from_scratch_depends_on_the_seed_and_not_on_its_weights() -> None:
    training = {"start": "scratch", "optimizer": {"lr": 1e-9}}

    def weights(seed: int, student: int) -> torch.Tensor:
        made, _ = run(student=make_student(seed=student), training=training, max_steps=1, seed=seed)
        return made.get_submodule("conv").weight.detach()

    assert torch.equal(weights(0, 1), weights(0, 2))
    assert not torch.equal(weights(0, 1), weights(1, 1))
    started = make_student()
    torch.manual_seed(0)
    start_anew(started)
    bound = 1 / (6 * 9) ** 0.5  # torch's for a convolution of 6 channels and 9 taps
    layer = started.get_submodule("conv")
    assert isinstance(layer, BinaryLayer)
    assert layer.weight.abs().max() <= bound
    assert float(layer.weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.1)


def test_a_module_that_cannot_start_anew_is_named() -> None:
    class Gain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(1))

    with pytest.raises(UsageError, match=r"training\.start: 1 has parameters and no reset_parameters"):
        start_anew(nn.Sequential(nn.Linear(2, 2), Gain()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": [{"name": "cross-entropy"}]}, "'joint', and none of the losses looks at it"),
        ({"losses": [{"name": "mutual", "at": ["cnv"]}]}, "mutual at 'cnv' matches no module"),
    ],
)
def test_a_teacher_that_could_not_teach_is_refused(changes: dict[str, Any], message: str) -> None:
    student = make_student()
    with pytest.raises(UsageError, match=message):
        run(student=student, training={"teacher": "joint"} | changes)
    assert not any(m._forward_hooks for m in student.modules())
