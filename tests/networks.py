"""Small float networks that users might bring: residual, plain with pools, MLP, with sharing."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def randomise(module: nn.Module, *, seed: int = 0) -> nn.Module:
    """Give batch norms the statistics and signs of a trained network; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            for values, low, high in ((m.running_mean, -1, 1), (m.running_var, 0.5, 2), (m.weight, -1.5, 1.5)):
                with torch.no_grad():
                    values.copy_(torch.empty_like(values).uniform_(low, high, generator=generator))
            with torch.no_grad():
                m.bias.copy_(torch.empty_like(m.bias).uniform_(-0.5, 0.5, generator=generator))
    return module.eval()


class Block(nn.Module):
    """Residual block in torchvision's form."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class Residual(nn.Module):
    """Stem, an identity block, a downsampling block, pool, classifier. Input (N, 3, 8, 8)."""

    input_shape = (1, 3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = Block(8, 8)
        self.layer2 = Block(8, 12, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.fc(torch.flatten(self.pool(self.layer2(self.layer1(x))), 1))


class Functional(nn.Module):
    """A plain network with max-pools, all activations functional. Input (N, 1, 8, 8)."""

    input_shape = (1, 1, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(6)
        self.conv3 = nn.Conv2d(6, 8, 3, padding=1)
        self.fc1 = nn.Linear(32, 16)
        self.fc2 = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.max_pool2d(torch.relu(self.conv3(x)), 2)
        x = x.view(x.size(0), -1)
        return self.fc2(F.dropout(F.relu(self.fc1(x)), 0.5, self.training))


def perceptron() -> nn.Sequential:
    """Linear layers only. Input (N, 1, 8, 8)."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 24),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(24, 24),
        nn.ReLU(),
        nn.Linear(24, 4),
    )


def plain() -> nn.Sequential:
    """Convolutions with batch norm, pool after the activation, of torch.nn classes only. Input (N, 3, 8, 8)."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


class Attention(nn.Module):
    """A transformer's block, pre-norm, its products of queries and keys written out. Input (N, T, C)."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        parts = self.qkv(self.norm1(x)).reshape(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width)
        x = x + self.proj(seen)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Transformer(nn.Module):
    """Patches, a block over tokens, one over their grid, classifier. Input (N, 3, 8, 8)."""

    input_shape = (1, 3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 2, 2)
        self.block = Attention()
        self.norm = nn.LayerNorm(16)
        self.mix = nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.patches(x).flatten(2).transpose(1, 2))
        grid = self.norm(x).reshape(-1, 4, 4, 16)
        return self.head((grid + F.gelu(self.mix(grid))).mean((1, 2)))


def sequence(axes: int = 1) -> nn.Sequential:
    """A plain network along one axis, or the same as one over images of width 1. Input (N, 2, 24) or (N, 2, 24, 1)."""
    flat = axes == 1
    conv, norm, pool = (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d) if flat else (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d)

    def size(along: int, across: int = 1) -> int | tuple[int, int]:
        return along if flat else (along, across)

    return nn.Sequential(
        conv(2, 8, size(5), padding=size(2, 0)),
        norm(8),
        nn.ReLU(),
        pool(size(2)),
        conv(8, 8, size(3), padding=size(1, 0), groups=2, bias=False),
        norm(8),
        nn.ReLU(),
        pool(size(2)),
        conv(8, 8, size(3), padding=size(2, 0), dilation=size(2), stride=size(2)),
        norm(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 5),
    )
