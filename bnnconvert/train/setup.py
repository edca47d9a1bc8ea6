"""What a run is really made with: the recipe's training section with the caller's changes on top."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from bnnconvert.errors import UsageError
from bnnconvert.train.augment import Choice
from bnnconvert.train.batches import Sampling, derive_seed
from bnnconvert.train.views import Views
from bnnconvert.values.recipe import Training

LARGE_BATCH = 256


@dataclass(frozen=True)
class Setup:
    """Everything about a run that is neither model nor data."""

    training: Training
    seed: int
    augmentation: Choice
    mixed_precision: Literal["no", "fp16", "bf16"]
    max_steps: int | None
    workers: int
    sampling: Sampling | None = None

    def total_steps(self, per_epoch: int) -> int:
        """Optimizer steps of the whole run."""
        steps = self.training.epochs * per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)


def override(
    training: Training,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    validation_share: float | None = None,
    max_steps: int | None = None,
) -> Training:
    """The recipe's training section with other epochs, batch size, learning rate or held-out share.

    A learning rate of a stage keeps its ratio to the optimizer's.

    Raises: UsageError for a number that makes no sense.
    """
    for name, number in (("epochs", epochs), ("batch_size", batch_size), ("lr", lr), ("max_steps", max_steps)):
        if number is not None and not 0 < number < math.inf:
            raise UsageError(f"{name} is {number}; give a number above 0.")
    if validation_share is not None and not 0 < validation_share < 1:
        raise UsageError(f"validation_share is {validation_share}; give a number between 0 and 1.")
    given = {"epochs": epochs, "batch_size": batch_size, "validation_share": validation_share}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if lr is not None:
        ratio = lr / training.optimizer.lr
        changes["optimizer"] = training.optimizer.model_copy(update={"lr": lr})
        changes["stages"] = [
            stage if stage.lr is None else stage.model_copy(update={"lr": stage.lr * ratio})
            for stage in training.stages
        ]
    return training.model_copy(update=changes)


def refuse_half(setup: Setup, evaluations: int) -> None:
    """Refuse what fp16 breaks: a gradient that overflows is skipped, and others come at a scale that changes.

    Raises: UsageError naming the setting.
    """
    if setup.mixed_precision != "fp16":
        return
    if evaluations > 1:
        name = setup.training.optimizer.name
        raise UsageError(f"training.optimizer: {name!r} takes two gradients a step and fp16 may skip one; use bf16.")
    if setup.training.gradient_bits is not None:
        raise UsageError("training.gradient_bits: clips are no longer right when fp16 changes its scale; use bf16.")


def doubts(training: Training, batch: int) -> list[str]:
    """Sentences about settings that work, and that experience with binary networks advises against.

    Source: Qin et al., Binary Neural Networks: A Survey, Pattern Recognition 2020, arXiv:2004.03333, section 3.5
    """
    is_descent = training.optimizer.name in ("sgd", "nesterov", "extragradient")
    if not is_descent or training.schedule != "constant" or batch >= LARGE_BATCH:
        return []
    remedy = f"take a schedule that decays, adam, or batches of {LARGE_BATCH} and more"
    return [f"Gradient descent at a constant rate trains binary networks badly on batches of {batch}; {remedy}."]


def comparable_settings(
    setup: Setup, views: Views, student: nn.Module, *, device: torch.device, processes: int
) -> dict[str, Any]:
    """What a resumed run must agree with to be exact; `environment` holds what rounding depends on besides."""
    data = views.data
    shapes = sorted(f"{name} {tuple(parameter.shape)}" for name, parameter in student.named_parameters())
    return {
        "training": setup.training.model_dump(mode="json"),
        "seed": setup.seed,
        "max_steps": setup.max_steps,
        "augmentation": setup.augmentation,
        "mixed_precision": setup.mixed_precision,
        "training samples": len(views.train),
        "held-out samples": len(views.held_out),
        "scale": data.scale,
        "mean": list(data.mean),
        "std": list(data.std),
        "student": f"{derive_seed(*shapes):x}",
        "environment": {
            "torch": str(torch.__version__),
            "device": device.type,
            "threads": torch.get_num_threads(),
            "processes": processes,
        },
    }
