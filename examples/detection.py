"""A network that finds and reads handwritten digits, box by box, becomes binary.

python examples/detection.py [--recipe reactnet] [--epochs 20]       some minutes on a CPU

The digits are those that scikit-learn ships, one to four to a scene and of several sizes, on a background of noise and
a slope of light; no digit of a training scene is in a test scene. The score is COCO's mAP, over the ten digits. The
first layer and the heads stay float.
"""

from pathlib import Path

import torch
from dense import command, of_digits, packed, trained
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from bnnconvert.load.data import load_data
from bnnconvert.tasks import TASKS

SIDE, CLASSES = 48, 10
SCENES = {"train": 4000, "test": 500}
SIZES, MOST, TRIES = (12, 22), 4, 20
"""Sides of a digit, from and to; digits of a scene; places that are tried for each."""

Target = dict[str, Tensor]


class Scenes(Dataset[tuple[Tensor, Target]]):
    """Scenes (1, 48, 48) of digits that do not overlap, and the box around the ink of each."""

    def __init__(self, digits: Tensor, labels: Tensor, count: int, *, seed: int) -> None:
        draws = torch.Generator().manual_seed(seed)
        slopes = torch.rand(count, 2, 1, 1, generator=draws) * torch.linspace(0, 80, SIDE)
        light = slopes[:, 0] + slopes[:, 1].mT
        self.images = (light[:, None] + 40 * torch.rand(count, 1, SIDE, SIDE, generator=draws)).to(torch.uint8)
        self.targets = [self._fill(image[0], digits, labels, draws) for image in self.images]

    def _fill(self, image: Tensor, digits: Tensor, labels: Tensor, draws: torch.Generator) -> Target:
        def draw(low: int, high: int) -> int:
            return int(torch.randint(low, high + 1, (), generator=draws))

        taken, boxes, found = torch.zeros_like(image, dtype=torch.bool), [], []
        wanted = draw(1, MOST)
        for _ in range(TRIES):
            size = draw(*SIZES)
            top, left = draw(0, SIDE - size), draw(0, SIDE - size)
            area = (slice(top, top + size), slice(left, left + size))
            if taken[area].any():
                continue
            number = draw(0, len(digits) - 1)
            ink = F.interpolate(digits[number][None].float(), size=size, mode="bilinear", align_corners=False)[0, 0]
            image[area] = torch.maximum(image[area], ink.to(torch.uint8))
            taken[area] = True
            y, x = (ink > 96).nonzero().unbind(1)
            box = [left + int(x.min()), top + int(y.min()), left + int(x.max()) + 1, top + int(y.max()) + 1]
            boxes.append([side / SIDE for side in box])
            found.append(int(labels[number]))
            if len(boxes) == wanted:
                break
        return {"labels": torch.tensor(found), "boxes": torch.tensor(boxes)}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        return self.images[index], self.targets[index]


def scenes() -> tuple[Scenes, Scenes]:
    """Training and test scenes, of training and test digits."""
    return of_digits(Scenes, SCENES)


def layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Detector(nn.Module):
    """A pyramid of two steps, and one head for classes and one for sides on a quarter of the resolution.

    Shapes: x (N, 1, H, W), y (N, classes + 4, H / 4, W / 4).
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        w2, w4 = 2 * width, 4 * width
        self.stem = layer(1, width)
        self.second = nn.Sequential(layer(width, w2, 2), layer(w2, w2))
        self.fourth = nn.Sequential(layer(w2, w4, 2), layer(w4, w4), layer(w4, w4))
        self.eighth = nn.Sequential(layer(w4, w4, 2), layer(w4, w4))
        self.lateral = layer(w4, w4)
        self.classes = nn.Sequential(layer(w4, w4), nn.Conv2d(w4, CLASSES, 1))
        self.sides = nn.Sequential(layer(w4, w4), nn.Conv2d(w4, 4, 1))
        nn.init.constant_(self.classes[1].bias, -4.0)  # hardly any cell has an object at first

    def forward(self, x: Tensor) -> Tensor:
        """Class logits and distances of each cell."""
        fine = self.fourth(self.second(self.stem(x)))
        coarse = self.eighth(fine)
        fine = self.lateral(fine) + F.interpolate(coarse, scale_factor=2.0, mode="nearest")
        return torch.cat([self.classes(fine), self.sides(fine)], 1)


def main(*, recipe: str = "reactnet", epochs: int = 20, folder: Path | None = None) -> dict[str, float]:
    """Train, convert, fine-tune, export; mAP on the test scenes, and bytes."""
    task = TASKS["detection"]()
    data = load_data("detection:scenes", task=task)
    torch.manual_seed(0)
    net = trained(Detector(), data, task.hard_loss, epochs=epochs)
    path = Path(folder or ".") / "detector.packed.safetensors"
    return packed(net, data, task, recipe=recipe, epochs=epochs, path=path)


if __name__ == "__main__":
    command(main, __doc__, "mAP", epochs=20)
