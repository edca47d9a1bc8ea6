"""Every rule says what a run gives."""

import pytest
import torch
from torch import nn

from bnnconvert.binarizers import build_weight_binarizer
from bnnconvert.graph import ACTIVATIONS
from bnnconvert.layers.conv2d import BinaryConv2d
from bnnconvert.layers.linear import BinaryLinear
from bnnconvert.layers.maxout import Maxout
from bnnconvert.layers.rprelu import RPReLU
from bnnconvert.shapes import _FUNCTIONS, _RULES, propagate_shapes, shape_by_rule
from bnnconvert.values.recipe import Named

SPECIAL = {
    nn.BatchNorm1d: (nn.BatchNorm1d(4), (2, 4, 5)),
    nn.BatchNorm2d: (nn.BatchNorm2d(4), (2, 4, 5, 3)),
    nn.BatchNorm3d: (nn.BatchNorm3d(4), (2, 4, 5, 3, 2)),
    nn.LayerNorm: (nn.LayerNorm(3), (2, 4, 3)),
    nn.GroupNorm: (nn.GroupNorm(2, 4), (2, 4, 3)),
    nn.Softmax: (nn.Softmax(1), (2, 4, 3)),
    RPReLU: (RPReLU(4), (2, 4, 3, 3)),
    Maxout: (Maxout(4), (2, 4, 3, 3)),
    nn.Conv1d: (nn.Conv1d(4, 6, 3, 2, 1), (2, 4, 9)),
    nn.Conv2d: (nn.Conv2d(4, 6, (3, 5), (2, 3), (1, 4), 2, groups=2), (2, 4, 17, 19)),
    nn.Conv3d: (nn.Conv3d(4, 6, 3, 2, 1), (2, 4, 9, 8, 7)),
    nn.MaxPool1d: (nn.MaxPool1d(3, 2, 1), (2, 4, 9)),
    nn.MaxPool2d: (nn.MaxPool2d((3, 2), 2, (1, 0), (1, 2)), (2, 4, 9, 8)),
    nn.AvgPool1d: (nn.AvgPool1d(3, 2, 1), (2, 4, 9)),
    nn.AvgPool2d: (nn.AvgPool2d((3, 2)), (2, 4, 9, 8)),
    nn.AdaptiveAvgPool2d: (nn.AdaptiveAvgPool2d((None, 2)), (2, 4, 5, 6)),
    nn.Linear: (nn.Linear(4, 6), (2, 3, 4)),
}


def example(kind: type[nn.Module]) -> tuple[nn.Module, tuple[int, ...]]:
    if kind in SPECIAL:
        return SPECIAL[kind]
    if kind in (BinaryConv2d, BinaryLinear):
        layer, shape = SPECIAL[nn.Conv2d if kind is BinaryConv2d else nn.Linear]
        weights = build_weight_binarizer(Named(name="sign", estimator="clip"), tuple(layer.weight.shape), where="test")
        return kind.from_float(layer, weight_binarizer=weights, input_binarizer=None), shape
    return kind(), (2, 4, 3, 3)


@pytest.mark.parametrize("kind", _RULES, ids=lambda kind: kind.__name__)
def test_a_rule_says_what_a_run_gives(kind: type[nn.Module]) -> None:
    module, shape = example(kind)
    x = torch.randn(shape)
    assert shape_by_rule(module.eval(), x) == tuple(module(x).shape)


def test_no_rule_where_settings_do_not_say_it() -> None:
    x = torch.randn(2, 4, 8, 8)
    assert shape_by_rule(nn.Conv2d(4, 4, 3, padding="same"), x) is None
    assert shape_by_rule(nn.MaxPool2d(2, ceil_mode=True), x) is None
    assert shape_by_rule(nn.ReLU(), [x]) is None
    assert nn.ReLU in ACTIVATIONS


@pytest.mark.parametrize("function", _FUNCTIONS, ids=lambda function: function.__name__)
def test_a_functions_rule_says_what_a_call_gives(function: object) -> None:
    assert callable(function)
    x, y = torch.randn(2, 4, 5, 6), torch.randn(4, 1, 6)
    for args in (
        [([x, x], 1)]
        if "cat" in function.__name__
        else [(x, x, x)]
        if "dot" in function.__name__
        else [(x, y), (x, 2.0)]
    ):
        assert _FUNCTIONS[function](*args) == tuple(function(*args).shape)


class Odd(nn.Module):
    """What meta tensors cannot do: a constant made on the CPU, a size read from values."""

    def __init__(self, *, reads: bool) -> None:
        super().__init__()
        self.reads = reads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * torch.arange(x.shape[1])[:, None, None]
        return y[:, : int(y.sum()) * 0 + 2] if self.reads else y


class Fx(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Odd) or super().is_leaf_module(m, module_qualified_name)


@pytest.mark.parametrize("reads", [False, True])
def test_other_ways_stand_behind_the_quick_one(reads: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Odd(reads=reads), nn.ConvTranspose2d(2 if reads else 4, 5, 3, 2))
    graph = torch.fx.GraphModule(net, Fx().trace(net))
    propagate_shapes(graph, torch.randn(2, 3, 6, 6))
    x = torch.randn(2, 3, 6, 6)
    shapes = {str(n.target): n.meta["shape"] for n in graph.graph.nodes if n.op == "call_module"}
    assert shapes["1"] == (2, 2 if reads else 4, 4, 4)
    assert shapes["2"] == tuple(net(x).shape)
