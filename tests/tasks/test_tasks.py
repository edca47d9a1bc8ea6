"""What every task promises, and its loss, score and agreement on cases done by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bnnconvert.errors import RefusalError, UsageError
from bnnconvert.load.task import load_task
from bnnconvert.tasks import TASKS, Task
from bnnconvert.tasks.segmentation import IGNORED
from bnnconvert.train.metrics import measure_accuracy
from bnnconvert.train.objective import Objective
from bnnconvert.values.recipe import Loss

AXES = {2: (6, 3), 4: (6, 3, 4, 5)}
PERFECT = {
    "classification": lambda y: y.argmax(1),
    "segmentation": lambda y: y.argmax(1),
    "multi-label": lambda y: (y > 0).float(),
    "regression": lambda y: y,
}
"""Targets that an output meets in full; a new task needs a row here."""


def output_of(task: Task, seed: int = 0) -> Tensor:
    return torch.randn(AXES[task.dims[0]], generator=torch.Generator().manual_seed(seed)) * 2


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> Task:
    return TASKS[request.param]()


def test_rows_carry_their_name(task: Task) -> None:
    assert TASKS[task.name] is type(task)
    assert set(PERFECT) == set(TASKS)


def test_following_is_least_at_the_teacher(task: Task) -> None:
    teacher = output_of(task)
    student = teacher.clone().requires_grad_()
    loss = task.follow(student, teacher, temperature=2.0)
    (gradient,) = torch.autograd.grad(loss, student)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert float(gradient.abs().max()) < 1e-6
    assert float(task.follow(output_of(task, 1), teacher, temperature=2.0)) > 0.1


def test_gradient_steps_follow_teacher_and_targets(task: Task) -> None:
    teacher, targets = output_of(task), PERFECT[task.name](output_of(task))
    for loss_of in (lambda z: task.follow(z, teacher), lambda z: task.hard_loss(z, targets)):
        z = output_of(task, 1).requires_grad_()
        before = loss_of(z)
        (gradient,) = torch.autograd.grad(before, z)
        assert float(loss_of((z - 0.1 * gradient).detach())) < float(before.detach())


def test_perfect_outputs_score_one_and_others_less(task: Task) -> None:
    y = output_of(task)
    targets = PERFECT[task.name](y)
    batches = [(y[:4], targets[:4]), (y[4:], targets[4:])]
    found = measure_accuracy(lambda x: x, batches, task=task)
    assert found.accuracy == pytest.approx(1)
    assert found.samples == 6
    worse = measure_accuracy(lambda x: -x, batches, task=task).accuracy
    assert not task.no_worse(worse, found.accuracy)
    assert task.quick_scores(y, targets).shape == (6,)


def test_agreement_counts_each_sample(task: Task) -> None:
    y = output_of(task)
    other = y.clone()
    other[0] = -y[0]
    shares = task.agreement(other, y)
    assert shares.shape == (6,)
    assert torch.equal(shares[1:], torch.ones(5, dtype=shares.dtype))
    assert float(shares[0]) < 1


def test_wrong_outputs_and_targets_are_refused(task: Task) -> None:
    with pytest.raises(RefusalError, match=task.name):
        task.output(torch.zeros(3))
    y = output_of(task)
    with pytest.raises(UsageError):
        task.check(y, PERFECT[task.name](y) + 7 if task.name != "regression" else y[:, :1])


def test_segmentation_ignores_pixels() -> None:
    task = TASKS["segmentation"]()
    y = output_of(task)
    masks = y.argmax(1)
    masks[:, 0] = IGNORED
    loss = task.hard_loss(y, masks)
    assert float(loss) == pytest.approx(float(F.cross_entropy(y[:, :, 1:], masks[:, 1:])), rel=1e-5)
    task.check(y, masks)
    assert measure_accuracy(lambda x: x, [(y, masks)], task=task).accuracy == pytest.approx(1)


def test_miou_by_hand() -> None:
    """Class 0: 2 of 3 pixels, class 1: 1 of 2; the mean over both."""
    y = F.one_hot(torch.tensor([[[0, 0, 0, 1]]]), 2).permute(0, 3, 1, 2).float()
    found = measure_accuracy(lambda x: x, [(y, torch.tensor([[[0, 0, 1, 1]]]))], task=TASKS["segmentation"]())
    assert found.accuracy == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_a_task_of_one_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = "from bnnconvert.tasks.regression import Regression\n"
    (tmp_path / "own_task.py").write_text(base + "class Lower(Regression):\n    higher_is_better = False\n")
    own = load_task("own_task:Lower")
    assert own.no_worse(0.1, 0.2)
    assert not own.no_worse(0.2, 0.1)


def test_wrong_names_say_what_there_is() -> None:
    with pytest.raises(UsageError, match="did you mean 'segmentation'"):
        load_task("segmentaton")
    with pytest.raises(UsageError, match=r"must be a bnnconvert\.tasks\.Task"):
        load_task("math:pi")


def test_losses_about_classes_are_refused_elsewhere() -> None:
    model: Any = torch.nn.Linear(2, 2)
    with pytest.raises(UsageError, match="for classification, not for regression"):
        Objective([Loss(name="rotation-margin")], model, model, device=torch.device("cpu"), task=TASKS["regression"]())
