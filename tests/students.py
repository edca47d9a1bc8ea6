"""Small binary students made by hand from layers, without any recipe: what the deploy side is tested on."""

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node, Tracer

from bnnconvert.binarizers.base import Encoder, InputBinarizer, Plane, WeightBinarizer
from bnnconvert.binarizers.scaled_sign import ScaledSignWeight
from bnnconvert.binarizers.shifted_sign import ShiftedSignInput
from bnnconvert.binarizers.sign import SignInput, SignWeight
from bnnconvert.estimators.base import Estimator
from bnnconvert.layers.attention import Attention
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.layers.conv2d import BinaryConv2d
from bnnconvert.layers.linear import BinaryLinear
from bnnconvert.layers.rprelu import RPReLU


class Through(Estimator):
    """The identity as surrogate: these tests never train."""

    source = "tests"

    def gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        return grad


class TwoPlanes(InputBinarizer):
    """x^ = sign(x) + sign(x - 0.5) / 2: two input planes."""

    source = "tests"

    def planes(self, x: Tensor) -> list[Plane]:
        return [Plane(torch.where(x >= 0, 1.0, -1.0)), Plane(torch.where(x >= 0.5, 1.0, -1.0), torch.tensor(0.5))]

    def encoder(self) -> Encoder:
        return Encoder(torch.tensor([[[0.0]], [[0.5]]]), torch.zeros(2, 1, dtype=torch.bool), torch.tensor([1.0, 0.5]))


class Window(InputBinarizer):
    """+1 inside [-1, 1): one plane with two thresholds."""

    source = "tests"

    def planes(self, x: Tensor) -> list[Plane]:
        return [Plane(torch.where((x >= -1) & (x < 1), 1.0, -1.0))]

    def encoder(self) -> Encoder:
        return Encoder(torch.tensor([[[-1.0, 1.0]]]), torch.zeros(1, 1, dtype=torch.bool), torch.ones(1))


class Residue(WeightBinarizer):
    """Two weight planes: the sign, then the sign of what is left."""

    source = "tests"

    def planes(self, weight: Tensor) -> list[Plane]:
        first = torch.where(weight >= 0, 1.0, -1.0)
        alpha = weight.abs().flatten(1).mean(1)
        rest = weight - first * alpha.reshape(-1, *(1,) * (weight.dim() - 1))
        return [Plane(first, alpha), Plane(torch.where(rest >= 0, 1.0, -1.0), rest.abs().flatten(1).mean(1))]


INPUTS = {
    "sign": lambda c: SignInput(c, estimator=Through()),
    "shifted": lambda c: _shifted(c),
    "two": TwoPlanes,
    "window": Window,
    "none": lambda c: None,
}
WEIGHTS = {
    "sign": lambda: SignWeight(estimator=Through()),
    "scaled": lambda: ScaledSignWeight(estimator=Through()),
    "residue": Residue,
}


def _shifted(channels: int) -> InputBinarizer:
    binarizer = ShiftedSignInput(channels, estimator=Through())
    nn.init.normal_(binarizer.shift, std=0.3)
    return binarizer


def conv(
    i: int, o: int, k: int = 3, *, inputs: str = "sign", weights: str = "scaled", pad: str = "zero", **settings
) -> BinaryConv2d:
    return BinaryConv2d.from_float(
        nn.Conv2d(i, o, k, **settings),
        weight_binarizer=WEIGHTS[weights](),
        input_binarizer=INPUTS[inputs](i),
        pad_bit=pad,
    )


def linear(i: int, o: int, *, inputs: str = "sign", weights: str = "scaled", bias: bool = True) -> BinaryLinear:
    return BinaryLinear.from_float(
        nn.Linear(i, o, bias=bias), weight_binarizer=WEIGHTS[weights](), input_binarizer=INPUTS[inputs](i)
    )


class _Leaves(Tracer):
    def is_leaf_module(self, m: nn.Module, path: str) -> bool:
        return isinstance(m, BinaryLayer | RPReLU | Attention) or super().is_leaf_module(m, path)


def trace(module: nn.Module) -> GraphModule:
    """Student of a module: a graph with the binary layers as leaves, batch norms with statistics, in eval mode."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(m.weight)
            nn.init.normal_(m.bias)
            m.running_mean.normal_(std=3)
            m.running_var.uniform_(0.5, 20)
    return GraphModule(module, _Leaves().trace(module)).eval()


def operators(graph: GraphModule) -> list[str]:
    """Names of the modules' types that a graph calls, in order."""
    nodes: list[Node] = list(graph.graph.nodes)
    return [type(graph.get_submodule(str(n.target))).__name__ for n in nodes if n.op == "call_module"]


class Block(nn.Module):
    """Stem, a block with a shortcut, pool, head: the shape of most networks."""

    def __init__(self, *, inputs: str = "sign", weights: str = "scaled", pad: str = "zero") -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(8)
        self.conv1 = conv(8, 12, padding=1, bias=False, inputs=inputs, weights=weights, pad=pad)
        self.bn1 = nn.BatchNorm2d(12)
        self.act1 = nn.PReLU(12)
        self.conv2 = conv(12, 8, padding=1, bias=True, inputs=inputs, weights=weights, pad=pad)
        self.bn2 = nn.BatchNorm2d(8)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.drop = nn.Dropout()
        self.fc1 = linear(32, 16, inputs=inputs, weights=weights)
        self.bn3 = nn.BatchNorm1d(16)
        self.fc2 = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn0(self.stem(x))
        z = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(y)))))
        y = self.pool(y + z)
        return self.fc2(self.bn3(self.fc1(self.drop(y.view(y.size(0), -1)))))
