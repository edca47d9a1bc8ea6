"""Boxes and their classes, from one map of cells.

A cell says how likely it is to be inside the middle of an object of each class, and how far from its own centre the
object's four sides are, in cells:

    output (N, classes + 4, H, W):  z_k, t_l, t_t, t_r, t_b      p_k = sigma(z_k),   distance = exp(t)

A cell answers for a box whose centre is within 1.5 cells of its own and that it lies in, the smallest one of several;
the cell nearest to a box's centre always does.

loss      [sum of the focal loss of all cells + sum over answering cells of (1 - GIoU)] / number of answering cells
follow    [T^2 sum KL(Bernoulli(p_T) || Bernoulli(p_S)) + sum w (t_S - t_T)^2] / sum w,  w = the teacher's largest p_k
"""

import contextlib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bnnconvert.errors import UsageError, first_line
from bnnconvert.tasks.base import Meter, Task
from bnnconvert.tasks.boxes import area, generalized_overlap, overlap, suppress

MOST = 100
"""Boxes of an image; targets are filled up to so many rows, whose class is NONE."""
NONE = -1
REACH = 1.5
"""Cells around a box's centre that answer for it."""
ALPHA, GAMMA = 0.25, 2.0
"""Of the focal loss."""
SEEN, LOOKED_AT, TOO_CLOSE = 0.05, 300, 0.6
"""Least score of a detection, how many of an image are compared, and the overlap of two that are one."""
SURE, SAME = 0.3, 0.5
"""Detections that count for agreement, and the overlap at which two agree."""
LARGEST = 6.0
"""exp(t) stays below 400 cells, so that an untrained network gives no infinite box."""


class Detection(Task):
    """One map of scores and distances (N, classes + 4, H, W), boxes with classes; the score is COCO's mAP.

    Source: Tian et al., FCOS, ICCV 2019, arXiv:1904.01355, with one level and without its centre-ness
    """

    name: ClassVar[str] = "detection"
    metric: ClassVar[str] = "mAP"
    same: ClassVar[str] = "the same boxes"
    dims: ClassVar[tuple[int, ...]] = (4,)
    shape: ClassVar[str] = "(N, classes + 4, H, W)"
    moves_with_image: ClassVar[bool] = True

    def target(self, value: Any) -> Tensor:
        if isinstance(value, Mapping):
            labels, boxes = torch.as_tensor(value["labels"]), torch.as_tensor(value["boxes"])
            value = torch.cat([labels.reshape(-1, 1).float(), boxes.reshape(-1, 4).float()], 1)
        rows = torch.as_tensor(value).float().reshape(-1, 5)
        real = rows[rows[:, 0] != NONE]
        if len(real) > MOST:
            raise ValueError(f"{len(real)} boxes in one image, and {MOST} are the most")
        if not bool(((real[:, 1:] >= 0) & (real[:, 1:] <= 1)).all()):
            raise ValueError("a box beyond the image; boxes are in fractions of its width and height")
        if not bool((real[:, 1:3] < real[:, 3:]).all()):
            raise ValueError("a box whose left or upper side is not before the other one; give x1, y1, x2, y2")
        return torch.cat([real, real.new_full((MOST - len(real), 5), NONE)])

    def check(self, output: Tensor, targets: Tensor) -> None:
        classes, labels = output.shape[1] - 4, targets[..., 0]
        if classes < 1:
            raise UsageError(
                f"The model's output has {output.shape[1]} channels; detection needs one per class and four distances."
            )
        wrong = labels[(labels != NONE) & ((labels < 0) | (labels >= classes))]
        if wrong.numel():
            raise UsageError(
                f"A box has class {int(wrong[0])}, but the model has {classes} classes ({output.shape[1]} channels "
                f"less the four distances); classes are 0 to {classes - 1}."
            )

    def hard_loss(self, output: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
        logits, boxes = _parts(output)
        answers = assign(boxes.shape[1:3], targets)
        wanted = F.one_hot((answers.labels + 1).long(), logits.shape[-1] + 1)[..., 1:].to(logits.dtype)
        loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        p = torch.where(wanted > 0, logits.sigmoid(), 1 - logits.sigmoid())
        weights = torch.where(wanted > 0, ALPHA, 1 - ALPHA) * (1 - p) ** GAMMA
        is_answer = answers.labels != NONE
        apart = 1 - generalized_overlap(boxes[is_answer], answers.boxes[is_answer])
        return ((weights * loss).sum() + apart.sum()) / is_answer.sum().clamp(min=1)

    def follow(self, student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
        (z, t), (wanted_z, wanted_t) = ((y[:, :-4], y[:, -4:]) for y in (student, teacher))
        soft = (wanted_z / temperature).sigmoid()
        ours = F.binary_cross_entropy_with_logits(z / temperature, soft, reduction="sum")
        least = F.binary_cross_entropy_with_logits(wanted_z / temperature, soft, reduction="sum")
        weight = wanted_z.sigmoid().amax(1, keepdim=True)
        apart = (weight * (t - wanted_t).square()).sum()
        return ((ours - least) * temperature**2 + apart) / weight.sum().clamp(min=1e-6)

    def quick_scores(self, output: Tensor, targets: Tensor) -> Tensor:
        """Share of the answering cells that are right in class and side."""
        logits, boxes = _parts(output)
        answers = assign(boxes.shape[1:3], targets)
        share, _ = overlap(boxes, answers.boxes)
        is_answer = answers.labels != NONE
        right = is_answer & (logits.argmax(-1) == answers.labels) & (share >= SAME)
        return right.flatten(1).sum(1) / is_answer.flatten(1).sum(1).clamp(min=1)

    def agreement(self, a: Tensor, b: Tensor) -> Tensor:
        pairs = zip(detections(a, least=SURE), detections(b, least=SURE), strict=True)
        return torch.tensor([_common(one, other) for one, other in pairs], dtype=torch.double)

    def meter(self, outputs: int, device: torch.device) -> Meter:
        return _MeanPrecision(_coco())


@dataclass(frozen=True)
class Answers:
    """What each cell has to say. Shapes: labels (N, H, W), NONE for background; boxes (N, H, W, 4)."""

    labels: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class Found:
    """Detections of one image, best first. Shapes: boxes (n, 4), scores (n,), labels (n,)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def assign(size: tuple[int, int] | torch.Size, targets: Tensor) -> Answers:
    """Which box each cell answers for. Shapes: targets (N, M, 5), class first; size (H, W)."""
    targets = targets[:, : max(1, int((targets[..., 0] != NONE).sum(1).max()))]
    centres, cells = _centres(size, targets), targets.new_tensor((size[1], size[0]))
    labels, boxes = targets[..., 0], targets[..., 1:]
    real = labels != NONE
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    each = centres[None, :, None]
    away = (each - middle[:, None]).mul(cells).abs().amax(-1)  # (N, cells, M), in cells
    lies_in = ((each > boxes[:, None, :, :2]) & (each < boxes[:, None, :, 2:])).all(-1)
    nearest = away == away.amin(1, keepdim=True)
    answering = ((away <= REACH) & lies_in | nearest) & real[:, None]
    size_of = torch.where(answering, area(boxes)[:, None], math.inf)
    chosen = size_of.argmin(-1)  # (N, cells)
    has_box = answering.any(-1)
    shape = (len(targets), *size)
    picked = boxes.gather(1, chosen[..., None].expand(-1, -1, 4))
    return Answers(torch.where(has_box, labels.gather(1, chosen), NONE).view(shape), picked.view(*shape, 4))


@torch.no_grad()
def detections(output: Tensor, *, least: float = SEEN) -> list[Found]:
    """What a model has found in each image, at most 100 boxes. Shapes: output (N, classes + 4, H, W)."""
    logits, boxes = _parts(output.float())
    found = []
    for scores, places in zip(logits.sigmoid().flatten(1, 2), boxes.flatten(1, 2), strict=True):
        best, index = scores.flatten().topk(min(LOOKED_AT, scores.numel()))
        index, best = index[best > least], best[best > least]
        cell, label = index // scores.shape[1], index % scores.shape[1]
        kept = suppress(places[cell], best, label, limit=TOO_CLOSE)[:MOST]
        found.append(Found(places[cell][kept], best[kept], label[kept]))
    return found


def _parts(output: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and boxes of each cell. Shapes: (N, classes + 4, H, W) -> (N, H, W, classes), (N, H, W, 4)."""
    cells = output.movedim(1, -1)
    size = cells.shape[1:3]
    centres = _centres(size, output).view(*size, 2)
    away = cells[..., -4:].clamp(max=LARGEST).exp() / output.new_tensor((size[1], size[0], size[1], size[0]))
    return cells[..., :-4], torch.cat([centres - away[..., :2], centres + away[..., 2:]], -1)


def _centres(size: tuple[int, int] | torch.Size, like: Tensor) -> Tensor:
    """Centres of the cells, row by row. Shapes: (H W, 2), x first."""
    rows, columns = ((torch.arange(n, device=like.device) + 0.5) / n for n in size)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], -1).view(-1, 2).to(like.dtype)


def _common(one: Found, other: Found) -> float:
    """Share of two images' detections that have a partner in the other one."""
    total = len(one.boxes) + len(other.boxes)
    shares, _ = overlap(one.boxes[:, None], other.boxes[None])
    pairs = torch.where(one.labels[:, None] == other.labels[None], shares, 0.0)
    common = 0
    while pairs.numel() and float(pairs.max()) >= SAME:
        row, column = divmod(int(pairs.argmax()), pairs.shape[1])
        pairs[row], pairs[:, column] = 0.0, 0.0
        common += 1
    return 2 * common / total if total else 1.0


class _MeanPrecision:
    """COCO's mean average precision, over classes and overlaps from 0.5 to 0.95."""

    def __init__(self, coco: Any) -> None:
        self.coco = coco
        self.images = 0
        self.truths: list[dict[str, Any]] = []
        self.found: list[dict[str, Any]] = []

    def update(self, output: Tensor, targets: Tensor) -> None:
        for found, rows in zip(detections(output.cpu()), targets.cpu(), strict=True):
            self.images += 1
            for label, *box in rows[rows[:, 0] != NONE].tolist():
                self.truths.append(self._record(int(label), box) | {"id": len(self.truths) + 1, "iscrowd": 0})
            for label, box, score in zip(*(x.tolist() for x in (found.labels, found.boxes, found.scores)), strict=True):
                self.found.append(self._record(label, box) | {"score": score})

    def _record(self, label: int, box: list[float]) -> dict[str, Any]:
        width, height = box[2] - box[0], box[3] - box[1]
        place = [box[0], box[1], width, height]
        return {"image_id": self.images, "category_id": label, "bbox": place, "area": width * height}

    def compute(self) -> float:
        if not (self.truths and self.found):
            return 0.0
        truth, quiet = self.coco.COCO(), io.StringIO()
        labels = sorted({record["category_id"] for record in self.truths})
        truth.dataset = {
            "images": [{"id": i + 1} for i in range(self.images)],
            "categories": [{"id": label} for label in labels],
            "annotations": self.truths,
            "info": {},
        }
        with contextlib.redirect_stdout(quiet):
            truth.createIndex()
            judge = self.coco.COCOeval(truth, truth.loadRes(self.found), "bbox")
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        return float(judge.stats[0])


def _coco() -> Any:
    """The two classes of pycocotools.

    Raises: UsageError where it is not installed.
    """
    try:
        from pycocotools import coco, cocoeval
    except ImportError as error:
        raise UsageError(
            f"Task 'detection' measures with pycocotools ({first_line(error)}); pip install 'bnnconvert[detection]'."
        ) from error
    return SimpleNamespace(COCO=coco.COCO, COCOeval=cocoeval.COCOeval)
