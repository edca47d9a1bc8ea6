from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from bnnconvert.errors import UsageError
from bnnconvert.load.shapes import guess_input_shape


def pooled(channels: int, kernel: int, stride: int) -> nn.Module:
    """Takes every size."""
    return nn.Sequential(
        nn.Conv2d(channels, 4, kernel, stride, kernel // 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


def flattening(channels: int, size: int) -> nn.Module:
    """Takes one common size."""
    left = size // 4
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * left * left, 10),
    )


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "size"),
    [(1, 3, 1, 28), (1, 5, 1, 28), (3, 3, 1, 32), (3, 5, 1, 32), (3, 7, 2, 224), (3, 3, 2, 224), (3, 16, 16, 224)],
)
def test_a_network_that_takes_every_size_gets_the_usual_one(channels: int, kernel: int, stride: int, size: int) -> None:
    assert guess_input_shape(pooled(channels, kernel, stride)) == (1, channels, size, size)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 16, 28, 32, 48, 64, 96, 128, 224])
def test_a_network_that_flattens_gets_the_only_size_that_fits(channels: int, size: int) -> None:
    assert guess_input_shape(flattening(channels, size)) == (1, channels, size, size)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), (1, 1, 28, 28)),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), (1, 3, 32, 32)),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (1, 1, 8, 8)),
        (nn.Sequential(nn.Linear(784, 10)), (1, 784)),
        (nn.Sequential(nn.Linear(13, 10)), (1, 13)),
    ],
)
def test_a_network_of_linear_layers(module: nn.Module, shape: tuple[int, ...]) -> None:
    assert guess_input_shape(module) == shape


class View(nn.Module):
    """The tutorial's network: a wrong image size becomes a wrong number of samples."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 3 * 3, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(nn.functional.avg_pool2d(self.conv(x), 16).reshape(-1, 36))


def test_a_wrong_number_of_samples_is_no_fit() -> None:
    module = View()
    assert module(torch.zeros(1, 3, 96, 96)).shape[0] == 4  # 96 is tried before 48
    assert guess_input_shape(module) == (1, 3, 48, 48)


def test_a_pool_that_must_enlarge_makes_a_size_implausible() -> None:
    layers: list[nn.Module] = []
    for i in range(5):
        layers += [nn.Conv2d(3 if i == 0 else 2, 2, 3, padding=1), nn.MaxPool2d(2)]
    vgg = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(98, 10))
    assert vgg.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert guess_input_shape(vgg) == (1, 3, 224, 224)


def test_an_enlarging_pool_is_better_than_nothing() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(600), nn.AdaptiveMaxPool2d(1), nn.Flatten())
    assert guess_input_shape(module) == (1, 3, 32, 32)


def test_what_a_library_says_of_its_model_comes_first() -> None:
    module = pooled(3, 3, 1)
    module.pretrained_cfg = {"input_size": (3, 160, 160)}
    assert guess_input_shape(module) == (1, 3, 160, 160)
    module.pretrained_cfg = {"input_size": (1, 160, 160)}
    assert guess_input_shape(module) == (1, 3, 32, 32)


class Structured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> object:
        y = self.conv(x)
        return {"maps": [y, (y,)], "mean": y.mean((2, 3))}


def test_outputs_may_be_nested() -> None:
    assert guess_input_shape(Structured()) == (1, 3, 32, 32)


def test_guessing_leaves_the_module_as_it_was() -> None:
    module = nn.Sequential(
        OrderedDict(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), pool=nn.AdaptiveAvgPool2d(1), drop=nn.Dropout())
    ).train()
    module.drop.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    guess_input_shape(module)
    assert [m.training for m in module.modules()] == [True, True, True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not module.pool._forward_hooks
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (nn.ReLU(), r"ReLU cannot be guessed, because .*--input-shape, for example 1,3,32,32"),
        (nn.Bilinear(2, 2, 2), r"Bilinear takes 2 inputs .*--input-shape"),
        (nn.Sequential(nn.Conv2d(3, 1, 3), nn.Flatten(), nn.Linear(7, 7)), r"No common image size fits Sequential"),
        (
            nn.TransformerDecoderLayer(8, 2),
            r"takes 2 inputs \(tgt, memory\); give .*--input-shape",
        ),
    ],
)
def test_a_model_that_fits_nothing_asks_for_the_shape(module: nn.Module, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        guess_input_shape(module)
    assert "\n" not in str(caught.value)
