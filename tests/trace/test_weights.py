"""Layers that the user's code has not written as layers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bnnconvert
from bnnconvert.trace.dataflow import layer_facts
from bnnconvert.trace.tracer import trace


class ByFunction(nn.Module):
    """Weights given to functions: a parameter of its own, those of a linear layer, one made from a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.weight, self.bias = nn.Parameter(torch.randn(6, 2, 3, 3)), nn.Parameter(torch.randn(6))
        self.inner = nn.Linear(6, 6)
        self.raw = nn.Parameter(torch.randn(6, 6, 1, 1))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(self.stem(x), self.weight, self.bias, stride=2, padding=1, groups=2)
        mean, deviation = self.raw.mean(), self.raw.std()
        x = F.conv2d(x, (self.raw - mean) / deviation)
        return self.head(F.linear(x.mean((2, 3)), self.inner.weight, self.inner.bias))


def test_weights_given_to_functions_are_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = ByFunction().eval(), torch.randn(2, 3, 9, 9)
    graph = trace(net, (x,))
    torch.testing.assert_close(graph(x), net(x))
    facts = {f.path: f for f in layer_facts(graph)}
    assert list(facts) == ["stem", "conv", "conv_1", "inner", "head"]
    assert all(f.obstacle is None for f in facts.values())
    assert graph.get_submodule("conv").weight is net.weight
    assert graph.get_submodule("inner").weight is net.inner.weight
    assert any("weight of conv_1 from parameters alone" in note for note in graph.meta["notes"])

    student = bnnconvert.convert(net, "bwn", example_inputs=(x,))
    assert {p.facts.path for p in student.plan.layers if p.decision != "float"} == {"conv", "conv_1", "inner"}
    bnnconvert.export(student, tmp_path / "net.packed.safetensors")
    actual = torch.from_numpy(bnnconvert.Session(tmp_path / "net.packed.safetensors").run(x.numpy()))
    torch.testing.assert_close(actual, student.model(x).detach(), rtol=1e-4, atol=1e-5)


PARAMETRIZED = {
    "weight norm": lambda layer: nn.utils.parametrizations.weight_norm(layer),
    "spectral norm": lambda layer: nn.utils.parametrizations.spectral_norm(layer),
    "orthogonal": lambda layer: nn.utils.parametrizations.orthogonal(layer),
}


@pytest.mark.parametrize("how", PARAMETRIZED)
@pytest.mark.parametrize("kind", ["conv", "linear", "transposed"])
def test_parametrized_layers_become_plain_ones(how: str, kind: str) -> None:
    torch.manual_seed(0)
    made = {
        "conv": nn.Conv2d(4, 4, 3, padding=1),
        "linear": nn.Linear(4, 4),
        "transposed": nn.ConvTranspose2d(4, 4, 2, 2, bias=False),
    }[kind]
    ends = (nn.Linear(3, 4), nn.Linear(4, 2)) if kind == "linear" else (nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    net = nn.Sequential(ends[0], PARAMETRIZED[how](made), ends[1]).eval()
    x = torch.randn(2, 3) if kind == "linear" else torch.randn(2, 3, 4, 4)
    graph = trace(net, (x,))
    torch.testing.assert_close(graph(x), net(x))
    assert [f.obstacle for f in layer_facts(graph)] == [None] * 3
    assert nn.utils.parametrize.is_parametrized(net[1])  # the user's model is as it was
    student = bnnconvert.convert(net, "bwn", example_inputs=(x,))
    assert {p.facts.path for p in student.plan.layers if p.decision != "float"} == {"1"}


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_transposed_convolution_by_function_becomes_a_layer(axes: int) -> None:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
            self.stem, self.head = kind(3, 4, 1), kind(6, 2, 1)
            self.weight = nn.Parameter(torch.randn(4, 3, *[4] * axes))
            self.bias = nn.Parameter(torch.randn(6))

        def forward(self, x: Tensor) -> Tensor:
            call = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
            return self.head(call(self.stem(x), self.weight, self.bias, 2, 1, 1, 2))

    net, x = Up().eval(), torch.randn(2, 3, *[4] * axes)
    graph = trace(net, (x,))
    torch.testing.assert_close(graph(x), net(x))
    made = next(f for f in layer_facts(graph) if f.kind.startswith("conv_transpose"))
    assert (made.weight_shape, made.obstacle) == ((4, 3, *[4] * axes), None)
    assert graph.get_submodule(made.path).groups == 2


def test_the_older_weight_norm_becomes_a_plain_layer() -> None:
    torch.manual_seed(0)
    with pytest.warns(FutureWarning, match="weight_norm"):
        layer = nn.utils.weight_norm(nn.Conv2d(4, 4, 3))
    net, x = nn.Sequential(nn.Conv2d(3, 4, 1), layer, nn.Conv2d(4, 2, 1)).eval(), torch.randn(2, 3, 6, 6)
    graph = trace(net, (x,))
    torch.testing.assert_close(graph(x), net(x))
    assert [f.obstacle for f in layer_facts(graph)] == [None] * 3


def test_a_weight_that_depends_on_the_input_is_kept_float_and_listed() -> None:
    class Dynamic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1)
            self.weight = nn.Parameter(torch.randn(4, 4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(self.stem(x))
            return self.head(F.conv2d(x, self.weight * x.mean()))

    plan = bnnconvert.convert(Dynamic(), "bwn", input_shape=(1, 3, 6, 6)).plan
    assert {p.facts.path: p.reason for p in plan.layers}["conv2d"] == "its weight depends on the input"
    assert {p.facts.path for p in plan.layers if p.decision != "float"} == {"one"}


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name_becomes_numbers(padding: str) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, (3, 5), padding=padding, dilation=(1, 2)), nn.Conv2d(4, 2, 1)
    )
    x = torch.randn(2, 3, 12, 12)
    graph = trace(net.eval(), (x,))
    torch.testing.assert_close(graph(x), net(x))
    assert graph.get_submodule("1").padding == ((1, 4) if padding == "same" else (0, 0))
    assert [f.obstacle for f in layer_facts(graph)] == [None] * 3


def test_a_weight_that_its_own_layer_uses_otherwise_makes_a_layer_of_its_own() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.one(self.stem(x))
            return self.head(F.conv2d(F.conv_transpose2d(y, self.one.weight, padding=1), self.one.weight, stride=2))

    net, x = Tied().eval(), torch.randn(2, 3, 8, 8)
    graph = trace(net, (x,))
    torch.testing.assert_close(graph(x), net(x))
    assert graph.meta["rung"] == "symbolic"
    assert [(f.kind, f.obstacle) for f in layer_facts(graph)][1:4] == [
        ("conv2d", None),
        ("conv_transpose2d", None),
        ("conv2d", None),
    ]
