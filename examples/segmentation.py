"""A U-Net that finds and reads handwritten digits, pixel by pixel, becomes binary.

python examples/segmentation.py [--recipe reactnet] [--epochs 15]       some minutes on a CPU

The digits are those that scikit-learn ships, three to a scene, on a background of noise and a slope of light; no digit
of a training scene is in a test scene. The score is mIoU over the background and the ten digits. The first layer and
the head stay float.
"""

from pathlib import Path

import torch
from dense import command, of_digits, packed, trained
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from bnnconvert.load.data import load_data
from bnnconvert.tasks import TASKS

SIDE, CLASSES = 32, 11
SCENES = {"train": 3000, "test": 500}


class Scenes(Dataset[tuple[Tensor, Tensor]]):
    """Scenes (1, 32, 32) of digits, and the class of every pixel: 0, or one more than the digit."""

    def __init__(self, digits: Tensor, labels: Tensor, count: int, *, seed: int) -> None:
        draws = torch.Generator().manual_seed(seed)
        corners = ((1, 1), (1, 18), (18, 1), (18, 18))
        chosen = torch.randint(len(digits), (count, 3), generator=draws)
        places = torch.stack([torch.randperm(4, generator=draws)[:3] for _ in range(count)])
        moved = torch.randint(0, 3, (count, 3, 2), generator=draws)
        slopes = torch.rand(count, 2, 1, 1, generator=draws) * torch.linspace(0, 80, SIDE)
        light = slopes[:, 0] + slopes[:, 1].mT
        self.images = (light[:, None] + 40 * torch.rand(count, 1, SIDE, SIDE, generator=draws)).to(torch.uint8)
        self.masks = torch.zeros(count, SIDE, SIDE, dtype=torch.int64)
        large = F.interpolate(digits.float(), scale_factor=1.5, mode="bilinear", align_corners=False)
        for i in range(count):
            for digit, place, shift in zip(chosen[i], places[i], moved[i], strict=True):
                top, left = (c + int(s) for c, s in zip(corners[place], shift, strict=True))
                area = (slice(top, top + 12), slice(left, left + 12))
                ink = large[digit, 0]
                self.images[i, 0][area] = torch.maximum(self.images[i, 0][area], ink.to(torch.uint8))
                self.masks[i][area][ink > 96] = int(labels[digit]) + 1

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.masks[index]


def scenes() -> tuple[Scenes, Scenes]:
    """Training and test scenes, of training and test digits."""
    return of_digits(Scenes, SCENES)


def layer(inputs: int, outputs: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    """Two steps down and two up, with skips. Shapes: x (N, 1, H, W), y (N, classes, H, W)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        w, w2, w4 = width, 2 * width, 4 * width
        self.stem, self.fine = layer(1, w), layer(w, w)
        self.down, self.coarse = layer(w, w2), layer(w2, w2)
        self.bottom, self.middle = layer(w2, w4), layer(w4, w4)
        self.up2, self.join2 = nn.ConvTranspose2d(w4, w2, 2, 2), layer(w4, w2)
        self.up1, self.join1 = nn.ConvTranspose2d(w2, w, 2, 2), layer(w2, w)
        self.head = nn.Conv2d(w, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of each pixel."""
        fine = self.fine(self.stem(x))
        coarse = self.coarse(self.down(F.max_pool2d(fine, 2)))
        x = self.middle(self.bottom(F.max_pool2d(coarse, 2)))
        x = self.join2(torch.cat([self.up2(x), coarse], 1))
        x = self.join1(torch.cat([self.up1(x), fine], 1))
        return self.head(x)


def main(*, recipe: str = "reactnet", epochs: int = 15, folder: Path | None = None) -> dict[str, float]:
    """Train, convert, fine-tune, export; mIoU on the test scenes, and bytes."""
    task = TASKS["segmentation"]()
    data = load_data("segmentation:scenes", task=task)
    torch.manual_seed(0)
    net = trained(UNet(), data, F.cross_entropy, epochs=epochs)
    path = Path(folder or ".") / "unet.packed.safetensors"
    return packed(net, data, task, recipe=recipe, epochs=epochs, path=path)


if __name__ == "__main__":
    command(main, __doc__, "mIoU", epochs=15)
