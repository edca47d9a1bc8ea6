"""Post-training: a student fitted to its teacher on a few images without labels, in a minute or two.

1  thresholds from data, batch norm re-estimated
2  scale and shift of each batch norm by least squares against the teacher's (kept where the outputs come nearer)
3  the operands become binary in the order of the recipe's stages, while the student follows the teacher's outputs, and
   where inputs are quantized its features, too: a few images say more by those

Labels are never looked at: where the loop chooses weights by accuracy, it is agreement with the teacher on images that
are held out. For classifiers only.
"""

import copy
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.nn import functional as F

from bnnconvert.errors import UsageError
from bnnconvert.tasks import CLASSIFICATION
from bnnconvert.train.batches import sample_of, to_input
from bnnconvert.train.calibrate import fit_batch_norm, prepare
from bnnconvert.train.latent import binary_layers
from bnnconvert.train.loop import finetune
from bnnconvert.train.losses.pairing import alike_activations
from bnnconvert.values.data import Data, Images
from bnnconvert.values.inputs import Example, alone, run_on
from bnnconvert.values.progress import Progress
from bnnconvert.values.recipe import Loss, Stage, Training

STEPS, BATCH, HELD_OUT = 600, 64, 1 / 8
FITTED = 128
"""Images for the least squares."""
LEAST = 2 * BATCH
FEATURES = 20.0
"""Weight of the features, whose distance is at most 4, beside that of the softened outputs."""


@dataclass(frozen=True)
class Reconstruction:
    """What it came to: shares of the held-out images on which student and teacher agree, in [0, 1]."""

    images: int
    steps: int
    fitted: bool
    """Whether the least squares came nearer to the teacher than batch norm re-estimated alone."""
    before: float
    after: float
    seconds: float


def reconstruct(
    student: GraphModule,
    teacher: GraphModule,
    data: Data,
    training: Training,
    *,
    images: int = 1024,
    steps: int | None = None,
    device: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Reconstruction:
    """Fit `student` in place, on `images` training images and without their labels.

    Raises: UsageError for too few images.
    """
    if images < LEAST:
        raise UsageError(f"{images} images are too few to calibrate on; give {LEAST} or more.")
    steps = steps or STEPS
    seen = _without_labels(teacher, data, images, seed)
    prepare(student, _batches(seen), frozen=training.keeps_statistics)
    few = seen.inputs(seen.train, torch.arange(min(FITTED, len(seen.train))))
    fitted = _fit(student, teacher, alone(few, "Calibration"))
    per_epoch = max(1, math.floor(len(seen.train) * (1 - HELD_OUT)) // BATCH)
    report = finetune(
        student,
        teacher,
        seen,
        _settings(training, _losses(student, teacher), epochs=math.ceil(steps / per_epoch)),
        device=device,
        seed=seed,
        max_steps=steps,
        progress=progress,
    )
    return Reconstruction(
        len(seen.train), report.steps, fitted, report.start_accuracy, report.held_out_accuracy, report.seconds
    )


@torch.no_grad()
def _without_labels(teacher: GraphModule, data: Data, images: int, seed: int) -> Data:
    """Some training images, labelled by what the teacher says of them."""
    chosen = sample_of(data.train, images, seed=seed)
    given, _ = chosen.batch(torch.arange(len(chosen)))
    pixels = alone(given, "Calibration")
    inputs = (to_input(x, data) for x in torch.split(pixels, BATCH))
    said = [CLASSIFICATION.output(run_on(teacher.eval(), x)).argmax(1) for x in inputs]
    return replace(data, train=Images(pixels, torch.cat(said)), test=None)


def _batches(data: Data) -> list[Example]:
    return [data.inputs(data.train, part) for part in torch.split(torch.arange(len(data.train)), BATCH)]


def _fit(student: GraphModule, teacher: GraphModule, x: Tensor) -> bool:
    """Least squares, undone where the outputs are no nearer to the teacher's afterwards."""
    fresh = copy.deepcopy(student.state_dict())
    before = _divergence(student, teacher, x)
    fit_batch_norm(student, teacher, x)
    if _divergence(student, teacher, x) < before:
        return True
    student.load_state_dict(fresh)
    return False


@torch.no_grad()
def _divergence(student: GraphModule, teacher: GraphModule, x: Tensor) -> float:
    ours, theirs = (F.log_softmax(CLASSIFICATION.output(m.eval()(x)).float(), dim=1) for m in (student, teacher))
    return float(F.kl_div(ours, theirs, reduction="batchmean", log_target=True))


def _losses(student: GraphModule, teacher: GraphModule) -> list[Loss]:
    # With float inputs the student is so near its teacher that the outputs alone lead it as well.
    is_far = any(not layer.is_weight_only for _, layer in binary_layers(student))
    features = is_far and alike_activations(student, teacher)
    return [Loss(name="distill", weight=1.0), *([Loss(name="feature-match", weight=FEATURES)] if features else [])]


def _settings(training: Training, losses: list[Loss], *, epochs: int) -> Training:
    """The recipe's settings for a short run: no stage that only lets a float network settle, the teacher as target."""
    stages = [stage for stage in training.stages if stage.weights or stage.inputs]
    total = sum(stage.share for stage in stages)
    return training.model_copy(
        update={
            "epochs": epochs,
            "batch_size": BATCH,
            "stages": [Stage.model_validate(s.model_dump() | {"share": s.share / total}) for s in stages],
            "losses": losses,
            "teacher": "frozen",
            "start": "teacher",
            "schedule_spans": "stage",
            "validation_share": HELD_OUT,
        }
    )
