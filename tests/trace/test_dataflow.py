"""Facts from dataflow: first, last, shortcut, depthwise, obstacles; never from names or order of registration."""

import torch
from torch import Tensor, nn

from bnnconvert.trace.dataflow import layer_facts
from bnnconvert.trace.tracer import trace
from bnnconvert.values.plan import LayerFacts
from tests.networks import Residual


def facts(module: nn.Module, *shape: int) -> dict[str, LayerFacts]:
    return {f.path: f for f in layer_facts(trace(module.eval(), (torch.randn(*shape),)))}


def test_first_last_and_shortcut_of_a_residual_network() -> None:
    found = facts(Residual(), 2, 3, 8, 8)
    assert [p for p, f in found.items() if f.is_first] == ["conv1"]
    assert [p for p, f in found.items() if f.is_last] == ["fc"]
    assert [p for p, f in found.items() if f.is_shortcut] == ["layer2.downsample.0"]


def test_order_of_registration_does_not_matter() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.middle, self.first = nn.Linear(4, 2), nn.Linear(4, 4), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.middle(self.first(x)))

    found = facts(Reversed(), 2, 3)
    assert list(found) == ["first", "middle", "last"]
    assert found["first"].is_first
    assert found["last"].is_last
    assert not (found["middle"].is_first)
    assert not (found["middle"].is_last)


def test_two_heads_are_both_last() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.body(x)
            return self.a(x), self.b(x)

    found = facts(Heads(), 2, 3)
    assert found["a"].is_last
    assert found["b"].is_last


def test_the_pointwise_convolutions_of_a_bottleneck_are_no_shortcuts() -> None:
    class Bottleneck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reduce, self.conv, self.expand = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 2, 3, 2, 1), nn.Conv2d(2, 8, 1)
            self.side = nn.Conv2d(8, 8, 1, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.expand(self.conv(self.reduce(x))) + self.side(x)

    found = facts(Bottleneck(), 1, 8, 4, 4)
    assert [p for p, f in found.items() if f.is_shortcut] == ["side"]


def test_costs_of_a_convolution() -> None:
    conv = facts(nn.Sequential(nn.Conv2d(6, 4, 3, padding=1, groups=2)), 1, 6, 5, 5)["0"]
    assert conv.macs == 4 * 3 * 9 * 25
    assert conv.float_bytes == 4 * (4 * 27 + 4)
    assert conv.packed_bytes() == 4 * 4  # 27 bits a filter, in 4 bytes


def test_obstacles_name_a_property_of_the_model() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice, self.scales = nn.ConvTranspose2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.reflect = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")
            self.up = nn.ConvTranspose2d(3, 3, 2, dilation=2)
            self.tokens = nn.Linear(5, 5)
            self.depthwise = nn.Conv2d(3, 3, 3, groups=3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.scales(self.twice(self.twice(x))) + self.scales(x[..., :1])
            x = self.reflect(x)
            return self.depthwise(self.tokens(self.up(x)[..., :5]))

    found = facts(Odd(), 1, 3, 5, 5)
    reasons = {path: f.obstacle or "" for path, f in found.items()}
    assert "called 2 times, as only" in reasons["twice"]
    assert "called 2 times on inputs of different sizes" in reasons["scales"]
    assert "'reflect'" in reasons["reflect"]
    assert "dilation is (2, 2)" in reasons["up"]
    assert not reasons["tokens"]
    assert reasons["depthwise"] == ""
    assert found["depthwise"].is_depthwise
