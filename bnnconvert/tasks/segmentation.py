"""One class per pixel; pixels of class 255 are not looked at.

follow    T^2 mean over pixels of  KL(softmax(z_T / T) || softmax(z_S / T))
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bnnconvert.errors import UsageError
from bnnconvert.tasks.base import Meter, Task, torchmetrics_for

IGNORED = 255


class Segmentation(Task):
    """Logits (N, classes, H, W), masks (N, H, W); the score is mIoU, over the classes that occur."""

    name: ClassVar[str] = "segmentation"
    metric: ClassVar[str] = "mIoU"
    same: ClassVar[str] = "the same class per pixel"
    dims: ClassVar[tuple[int, ...]] = (4,)
    shape: ClassVar[str] = "(N, classes, H, W)"
    moves_with_image: ClassVar[bool] = True

    def target(self, value: Any) -> Tensor:
        mask = torch.as_tensor(value)
        if mask.dim() != 2 or mask.is_floating_point():
            raise ValueError(f"a mask of {mask.dtype} with shape {tuple(mask.shape)}")
        return mask.to(torch.int64)

    def check(self, output: Tensor, targets: Tensor) -> None:
        if (output.shape[0], *output.shape[2:]) != tuple(targets.shape):
            raise UsageError(
                f"The masks have the shape {tuple(targets.shape)}, but the model's output has {tuple(output.shape)}; "
                "give masks of the output's size."
            )
        classes, seen = output.shape[1], targets[targets != IGNORED]
        if seen.numel() and (int(seen.min()) < 0 or int(seen.max()) >= classes):
            wrong = int(seen.min()) if int(seen.min()) < 0 else int(seen.max())
            raise UsageError(
                f"A mask has class {wrong}, but the model has {classes} outputs per pixel; masks hold 0 to "
                f"{classes - 1}, or {IGNORED} for pixels that do not count."
            )

    def hard_loss(self, output: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
        summed = F.cross_entropy(output, targets, ignore_index=IGNORED, label_smoothing=smoothing, reduction="sum")
        return summed / (targets != IGNORED).sum().clamp(min=1)

    def follow(self, student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
        ours, theirs = (F.log_softmax(z / temperature, dim=1) for z in (student, teacher))
        return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1).mean() * temperature**2

    def quick_scores(self, output: Tensor, targets: Tensor) -> Tensor:
        counts = (targets != IGNORED).flatten(1)
        right = (output.argmax(dim=1) == targets).flatten(1) & counts
        return right.sum(dim=1) / counts.sum(dim=1).clamp(min=1)

    def agreement(self, a: Tensor, b: Tensor) -> Tensor:
        return (a.argmax(dim=1) == b.argmax(dim=1)).double().flatten(1).mean(dim=1)

    def meter(self, outputs: int, device: torch.device) -> Meter:
        kind = torchmetrics_for(self.name).classification.MulticlassJaccardIndex
        meter: Meter = kind(num_classes=outputs, average="macro", ignore_index=IGNORED).to(device)
        return meter
