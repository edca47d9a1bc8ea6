"""A dozen kinds of networks, small, in the forms in which users bring them: what torchvision and timm are made of."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks import Transformer


def layer(
    inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, groups: int = 1, act: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Convolution, batch norm, ReLU or another activation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), act(inplace=True))


def head(channels: int) -> list[nn.Module]:
    """Pool and classify."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)]


class Preactivation(nn.Module):
    """Residual block whose norm and ReLU come before the convolution (ResNet v2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))


class Bottleneck(nn.Module):
    """Grouped bottleneck (ResNeXt)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.steps = nn.Sequential(layer(channels, channels, 1), layer(channels, channels, groups=4))
        self.last, self.norm = nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.last(self.steps(x))))


class Dense(nn.Module):
    """Each layer reads all before it (DenseNet)."""

    def __init__(self, inputs: int, growth: int, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer(inputs + i * growth, growth) for i in range(count))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for each in self.layers:
            features.append(each(torch.cat(features, 1)))
        return torch.cat(features, 1)


class Inverted(nn.Module):
    """Expand, depthwise, squeeze and excite, project (MobileNet, EfficientNet)."""

    def __init__(self, channels: int, wide: int) -> None:
        super().__init__()
        self.expand = layer(channels, wide, 1, act=nn.ReLU6)
        self.depthwise = layer(wide, wide, groups=wide, act=nn.ReLU6)
        self.squeeze, self.excite = nn.Conv2d(wide, 4, 1), nn.Conv2d(4, wide, 1)
        self.project = nn.Sequential(nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        y = y * torch.sigmoid(self.excite(F.silu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return x + self.project(y)


class Shuffle(nn.Module):
    """Half of the channels through a branch, then mixed (ShuffleNet)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(layer(half, half, 1), layer(half, half, groups=half), layer(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        y = torch.cat((left, self.branch(right)), dim=1)
        n, c, h, w = y.size()
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


class Inception(nn.Module):
    """Branches side by side, joined."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.one, self.three = layer(inputs, 8, 1), nn.Sequential(layer(inputs, 4, 1), layer(4, 8))
        self.pooled = layer(inputs, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.pooled(F.max_pool2d(x, 3, 1, 1))], 1)


class ConvNext(nn.Module):
    """Depthwise convolution, then a perceptron of each pixel on channels last, scaled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(channels, channels, 7, padding=3, groups=channels), nn.LayerNorm(channels)
        self.wide, self.narrow = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.narrow(F.gelu(self.wide(y)))).permute(0, 3, 1, 2)


class Mixer(nn.Module):
    """Perceptrons across patches and across channels in turns (MLP-Mixer)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 2, 2)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.tokens = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.channels = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.fc(x.mean(1))


class Windows(nn.Module):
    """Attention within windows of 4x4 pixels that are shifted, with a bias looked up in a table (Swin)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 16, 1), nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.table = nn.Parameter(torch.randn(49, 2))
        places = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        apart = places[:, :, None] - places[:, None, :] + 3
        self.register_buffer("index", (apart[0] * 7 + apart[1]).flatten())
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        y = torch.roll(self.norm(x), shifts=(-2, -2), dims=(1, 2))
        y = y.view(b, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        q, k, v = self.qkv(y).view(y.shape[0], 16, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index].view(16, 16, 2).permute(2, 0, 1)
        y = ((q @ k.transpose(-2, -1)) * (c // 2) ** -0.5 + bias).softmax(-1) @ v
        y = self.out(y.transpose(1, 2).reshape(-1, 16, c))
        y = y.view(b, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return self.fc((x + torch.roll(y, shifts=(2, 2), dims=(1, 2))).mean((1, 2)))


class UNet(nn.Module):
    """One step down and one up, with a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Sequential(layer(3, 8), layer(8, 8)), nn.Sequential(layer(8, 16), layer(16, 16))
        self.up, self.join, self.head = nn.ConvTranspose2d(16, 8, 2, 2), layer(16, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        coarse = self.up(self.coarse(F.max_pool2d(fine, 2)))
        return self.head(self.join(torch.cat([coarse, fine], 1)))


class Pyramid(nn.Module):
    """A pyramid of features, and a head on each level; outputs by name (FPN)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Sequential(layer(3, 8), layer(8, 8)), layer(8, 16, stride=2)
        self.lateral, self.top = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 1)
        self.heads = nn.ModuleDict({name: nn.Sequential(layer(16, 16), nn.Conv2d(16, 6, 1)) for name in ("p1", "p2")})

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        fine = self.stem(x)
        coarse = self.top(self.down(fine))
        joined = self.lateral(fine) + F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
        return OrderedDict(p1=self.heads["p1"](joined), p2=self.heads["p2"](coarse))


def sound() -> nn.Sequential:
    """Convolutions over time."""
    layers: list[nn.Module] = [nn.Conv1d(2, 8, 9, 2, 4), nn.BatchNorm1d(8), nn.ReLU()]
    layers += [nn.Conv1d(8, 8, 5, dilation=2, padding=4), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2)]
    return nn.Sequential(*layers, nn.Conv1d(8, 8, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 5))


def video() -> nn.Sequential:
    """Convolutions over space and time."""
    layers: list[nn.Module] = [nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU()]
    layers += [nn.Conv3d(8, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.AdaptiveAvgPool3d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 5))


def bottled(*body: nn.Module, channels: int = 16) -> nn.Sequential:
    """A stem, these blocks, a classifier."""
    return nn.Sequential(layer(3, 16), *body, *head(channels))


IMAGE = (3, 8, 8)
ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "preactivation": (lambda: bottled(Preactivation(16), Preactivation(16)), IMAGE),
    "resnext": (lambda: bottled(Bottleneck(16), Bottleneck(16)), IMAGE),
    "densenet": (lambda: bottled(Dense(16, 8, 3), channels=40), IMAGE),
    "mobilenet": (lambda: bottled(Inverted(16, 32), Inverted(16, 32)), IMAGE),
    "shufflenet": (lambda: bottled(Shuffle(16), Shuffle(16)), IMAGE),
    "inception": (lambda: bottled(Inception(16), channels=24), IMAGE),
    "convnext": (lambda: bottled(ConvNext(16), ConvNext(16)), IMAGE),
    "mixer": (Mixer, IMAGE),
    "vit": (Transformer, IMAGE),
    "swin": (Windows, IMAGE),
    "unet": (UNet, IMAGE),
    "pyramid": (Pyramid, IMAGE),
    "sound": (sound, (2, 64)),
    "video": (video, (3, 4, 6, 6)),
}
