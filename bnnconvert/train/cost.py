"""What a student's training step costs, in units of the float model's."""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from bnnconvert.tasks import CLASSIFICATION, Task
from bnnconvert.train.latent import clip_latent
from bnnconvert.train.layout import keep_gradient_layout, use_layout
from bnnconvert.train.objective import Objective
from bnnconvert.train.optimizers import add_network, make_optimizer
from bnnconvert.values.recipe import Loss, Training

Step = Callable[[], None]
WARM_UP = 3
LABELS = [Loss(name="cross-entropy")]


@dataclass(frozen=True)
class StepCost:
    """Medians over the rounds, with half of the range between the quartiles. Units: seconds."""

    original: float
    student: float
    with_teacher: float
    spreads: tuple[float, float, float]

    @property
    def ratio(self) -> float:
        """The student's step, teacher included, over the float model's."""
        return self.with_teacher / self.original


def step_cost(
    student: GraphModule,
    teacher: GraphModule,
    training: Training,
    x: Tensor,
    labels: Tensor,
    *,
    rounds: int = 10,
    task: Task = CLASSIFICATION,
) -> StepCost:
    """Time of whole steps (forward, loss, backward, optimizer) on one batch, the kinds of step in turns.

    The original's step is one of Adam by the labels; the student's is what the recipe has, a teacher that trains along
    and an optimizer that takes two gradients included.

    Copies are trained; the models stay as they are.
    """
    x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    steps = (
        _step(teacher, None, LABELS, Training(), x, labels, task),
        _step(student, None, LABELS, training, x, labels, task),
        _step(student, teacher, training.losses, training, x, labels, task),
    )
    times: tuple[list[float], ...] = ([], [], [])
    for number in range(WARM_UP + rounds):
        for step, found in zip(steps, times, strict=True):
            start = time.perf_counter()
            step()
            if number >= WARM_UP:
                found.append(time.perf_counter() - start)
    quarters = [statistics.quantiles(found, n=4) for found in times]
    original, alone, full = (middle for _, middle, _ in quarters)
    first, second, third = ((high - low) / 2 for low, _, high in quarters)
    return StepCost(original, alone, full, (first, second, third))


def _step(
    model: nn.Module,
    teacher: nn.Module | None,
    losses: list[Loss],
    training: Training,
    x: Tensor,
    labels: Tensor,
    task: Task,
) -> Step:
    model = copy.deepcopy(model).train().requires_grad_(True)
    use_layout(model, torch.channels_last)
    keep_gradient_layout(model)
    optimizer = make_optimizer(model, training.optimizer)
    joint = teacher is not None and training.teacher == "joint"
    objective = Objective(losses, model, teacher, device=x.device, joint=joint, task=task)
    if objective.trained is not None:
        add_network(optimizer, objective.trained, training.optimizer)

    def step() -> None:
        for _ in range(optimizer.evaluations):
            torch.autograd.backward(objective(model, x, labels, progress=0.0, check=False).loss)
            optimizer.step()
            optimizer.zero_grad()
        clip_latent(model)

    return step
