"""What every task promises, and its loss, score and agreement on cases done by hand."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bnnconvert.errors import RefusalError, UsageError
from bnnconvert.load.task import load_task
from bnnconvert.tasks import TASKS, Task
from bnnconvert.tasks.detection import MOST, NONE, Detection, assign, detections
from bnnconvert.tasks.segmentation import IGNORED
from bnnconvert.train.metrics import measure_accuracy
from bnnconvert.train.objective import Objective
from bnnconvert.values.recipe import Loss

AXES = {2: (6, 3), 4: (6, 3, 4, 5)}
DETECTION = Detection()
BOXES = torch.tensor([[0, 0.1, 0.1, 0.3, 0.5], [1, 0.55, 0.2, 0.95, 0.8]])
"""Class and sides."""


def rows(count: int) -> Tensor:
    """Targets of detection: two boxes in each image, their classes in turns."""
    made = torch.stack([DETECTION.target(BOXES) for _ in range(count)])
    made[1::2, :2, 0] = torch.tensor([1.0, 1.0])
    return made


def map_of(targets: Tensor, *, size: tuple[int, int] = (8, 10)) -> Tensor:
    """The output that finds these boxes and no others."""
    answers = assign(size, targets)
    logits = torch.full((*answers.labels.shape, 2), -7.0)
    for label in range(2):
        logits[..., label][answers.labels == label] = 7.0
    y, x = torch.meshgrid(*((torch.arange(n) + 0.5) / n for n in size), indexing="ij")
    away = torch.stack([x, y, x, y], -1) - answers.boxes
    away = (away * torch.tensor([1, 1, -1, -1]) * torch.tensor([size[1], size[0]] * 2)).clamp(min=0.01)
    return torch.cat([logits, torch.where(answers.labels[..., None] >= 0, away.log(), 0.0)], -1).movedim(-1, 1)


PERFECT = {
    "classification": lambda y: y.argmax(1),
    "segmentation": lambda y: y.argmax(1),
    "multi-label": lambda y: (y > 0).float(),
    "regression": lambda y: y,
    "detection": lambda y: rows(len(y)),
}
"""Targets that an output meets in full; a new task needs a row here."""


def output_of(task: Task, seed: int = 0) -> Tensor:
    if task.name == "detection":
        return map_of(rows(6)) + seed * torch.randn(6, 6, 8, 10, generator=torch.Generator().manual_seed(seed))
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


def test_cells_answer_for_the_smallest_box_around_them() -> None:
    """Of a large box and a small one in its middle; a box smaller than a cell has the nearest one."""
    large, small, tiny = [0, 0.0, 0.0, 1.0, 1.0], [1, 0.4, 0.4, 0.6, 0.6], [2, 0.91, 0.91, 0.92, 0.92]
    answers = assign((5, 5), DETECTION.target(torch.tensor([large, small, tiny]))[None])
    assert answers.labels[0].int().tolist() == [
        [-1, -1, -1, -1, -1],
        [-1, 0, 0, 0, -1],
        [-1, 0, 1, 0, -1],
        [-1, 0, 0, 0, -1],
        [-1, -1, -1, -1, 2],
    ]
    assert answers.boxes[0, 2, 2].tolist() == pytest.approx([0.4, 0.4, 0.6, 0.6])


def test_detection_loss_by_hand() -> None:
    """One cell, one class, p = 1/2: focal loss a (1/2)^2 ln 2; the cell's box covers a quarter of the true one."""
    output = torch.zeros(1, 5, 1, 1)
    output[:, 1:] = torch.log(torch.tensor(0.25))
    targets = DETECTION.target({"labels": [0], "boxes": [[0.0, 0.0, 1.0, 1.0]]})[None]
    expected = 0.25 * 0.25 * math.log(2) + 1 - 0.25
    assert float(DETECTION.hard_loss(output, targets)) == pytest.approx(expected, rel=1e-5)
    empty = torch.full((1, MOST, 5), float(NONE))
    assert float(DETECTION.hard_loss(output, empty)) == pytest.approx(0.75 * 0.25 * math.log(2), rel=1e-5)


def test_average_precision_by_hand() -> None:
    """Two boxes of one class; one is found with an overlap of 0.72, 5 of COCO's 10 limits, and a false one comes last.

    Recall 1/2 at precision 1 gives 51 of 101 recall points.
    """
    targets = DETECTION.target({"labels": [0, 0], "boxes": [[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]})[None]
    output = torch.full((1, 5, 2, 2), -9.0)
    output[0, :, 0, 0] = torch.tensor([5.0, *torch.tensor([0.5, 0.5, 0.5, 0.22]).log().tolist()])  # 0.5 wide, 0.36 high
    output[0, :, 0, 1] = torch.tensor([1.0, -3.0, -3.0, -3.0, -3.0])
    found = measure_accuracy(lambda x: x, [(output, targets)], task=DETECTION)
    assert found.accuracy == pytest.approx(0.5 * 51 / 101, abs=1e-6)


def test_one_of_two_detections_of_a_thing_is_kept() -> None:
    output = torch.full((1, 6, 1, 3), -9.0)
    output[0, 2:] = torch.tensor([0.75, 1.5, 0.75, 1.5]).log()[:, None, None].expand(4, 1, 3)
    output[0, :2, 0] = torch.tensor([[2.0, 1.0, -9.0], [-9.0, -9.0, 3.0]])
    output[0, 2, 0, 1], output[0, 4, 0, 1] = math.log(1.5), math.log(0.3)
    (found,) = detections(output)
    assert found.labels.tolist() == [1, 0]
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


@pytest.mark.parametrize(
    ("boxes", "says"),
    [
        ([[0, 3, 4, 9, 9]], "fractions"),
        ([[0, 0.5, 0.1, 0.4, 0.2]], "x1, y1, x2, y2"),
        ([[0, 0.1, 0.1, 0.2, 0.2]] * 101, "100 are the most"),
    ],
)
def test_boxes_that_are_none(boxes: list[list[float]], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DETECTION.target(torch.tensor(boxes))


def test_detection_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(UsageError, match=r"bnnconvert\[detection\]"):
        DETECTION.meter(6, torch.device("cpu"))


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
