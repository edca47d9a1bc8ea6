"""The threshold fold: bits equal to the student's own modules for every accumulator, whatever stands in the chain."""

from pathlib import Path

import pytest
import torch
from torch import nn

import bnnconvert
from bnnconvert.graph import stored
from bnnconvert.layers.maxout import Maxout
from bnnconvert.layers.packed import Affine, Encode
from bnnconvert.layers.rprelu import RPReLU
from bnnconvert.lower.deploy import deploy
from bnnconvert.lower.folds.threshold import Step, thresholds_of
from tests.students import conv, linear, operators, trace

K = 45
SIGN = Encode(torch.zeros(1, 1, 1), torch.zeros(1, 1, dtype=torch.bool))
WINDOW = Encode(torch.tensor([[[-1.0, 1.0]]]), torch.zeros(1, 1, dtype=torch.bool))


def batch_norm(*gammas: float, beta: float = 0.3) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(len(gammas)).eval()
    norm.weight.data = torch.tensor(gammas)
    norm.bias.data.fill_(beta)
    norm.running_mean = torch.linspace(-7, 9, len(gammas))
    norm.running_var = torch.linspace(0.5, 90, len(gammas))
    return norm


def prelu(*slopes: float) -> nn.PReLU:
    module = nn.PReLU(len(slopes))
    module.weight.data = torch.tensor(slopes)
    return module


def affine(channels: int, *, scale: float = 0.37, bias: float | None = None) -> Affine:
    given = None if bias is None else torch.full((channels,), bias)
    return Affine(torch.full((1, channels), scale), given, axis=1)


def rprelu(channels: int) -> RPReLU:
    module = RPReLU(channels)
    nn.init.normal_(module.shift_in)
    nn.init.normal_(module.slope)
    nn.init.normal_(module.shift_out)
    return module


def maxout(*sides: tuple[float, float]) -> Maxout:
    module = Maxout(len(sides)).eval()
    module.positive.data, module.negative.data = torch.tensor(sides).T
    return module


CHAINS = {
    "sign alone": [affine(3), SIGN],
    "bias on a tie": [affine(3, scale=0.5, bias=-1.0), SIGN],
    "negative scale": [affine(3, scale=-0.5, bias=2.0), SIGN],
    "batch norm": [affine(4), batch_norm(1.5, -0.7, 0.0, 1e-12), SIGN],
    "gamma zero, beta negative": [affine(2), batch_norm(0.0, -0.0, beta=-0.3), SIGN],
    "relu before norm": [affine(3), nn.ReLU(), batch_norm(1.0, -1.0, 0.5, beta=-0.5), SIGN],
    "relu after norm is constant": [affine(3), batch_norm(1.0, -1.0, 0.5), nn.ReLU(), SIGN],
    "hardtanh": [affine(3), batch_norm(1.0, -1.0, 0.5), nn.Hardtanh(), SIGN],
    "negative slopes flip twice": [affine(3), prelu(-0.5, -2.0, 0.25), batch_norm(1.0, -1.0, 0.5, beta=-1.5), SIGN],
    "rprelu": [affine(5), batch_norm(1.0, -1.0, 0.5, 2.0, 0.1), rprelu(5), SIGN],
    "maxout": [
        affine(4),
        batch_norm(1.0, -1.0, 0.5, 2.0),
        maxout((1.0, 0.25), (-0.5, 0.1), (0.0, -0.25), (0.3, -2.0)),
        batch_norm(1.0, -1.0, 0.5, 2.0, beta=-0.7),
        SIGN,
    ],
    "window": [affine(3), batch_norm(1.0, -1.0, 0.5), WINDOW],
    "leaky relu, two norms": [affine(2), batch_norm(1.0, -1.0), nn.LeakyReLU(0.1), batch_norm(-1.0, 2.0), SIGN],
}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("one_pixel", [False, True])
def test_thresholds_equal_the_chain_on_every_accumulator(name, one_pixel):
    torch.manual_seed(1)
    chain = CHAINS[name]
    channels = chain[0].scale.shape[1]
    side = (1, 1) if one_pixel else (5, 5)
    found = thresholds_of([Step(m, (2, channels, *side)) for m in chain], k=K, channels=channels)
    assert found is not None
    values = torch.arange(-K, K + 1, dtype=torch.int32)
    shape = (-1, channels, 1, 1) if one_pixel else (1, channels, -1, 1)
    acc = values[:, None].expand(-1, channels)
    acc = (acc if one_pixel else acc.T).reshape(shape).contiguous()
    expected = acc
    for module in chain:
        expected = module(expected)
    assert torch.equal(Encode(*found)(acc), expected)
    assert torch.equal(found[0].sort(-1).values, found[0])


def test_pieces_of_the_lattice_join_without_losing_a_flip(monkeypatch):
    chain = [affine(4), batch_norm(1.5, -0.7, 0.3, 1.0), prelu(-1.0, -0.5, 0.5, -2.0), SIGN]
    steps = [Step(m, (2, 4, 3, 3)) for m in chain]
    whole = thresholds_of(steps, k=K, channels=4)
    for piece in range(2, 14):
        monkeypatch.setattr("bnnconvert.lower.folds.threshold.CHUNK", 4 * piece)
        parts = thresholds_of(steps, k=K, channels=4)
        assert whole is not None
        assert parts is not None
        assert all(map(torch.equal, whole, parts))


def test_a_coarse_and_a_fine_look_find_what_all_accumulators_show(monkeypatch):
    torch.manual_seed(2)
    norm = nn.BatchNorm2d(64).eval()
    for values in (norm.weight.data, norm.bias.data, norm.running_mean):
        values.normal_(0, 30)
    bounds = Encode(torch.randn(2, 64, 1), torch.rand(2, 64) < 0.5)
    steps = [Step(m, (2, 64, 3, 3)) for m in (affine(64, scale=0.013), norm, nn.PReLU(), bounds)]
    for k in (1, 2, 9, 1000, 2305):
        quick = thresholds_of(steps, k=k, channels=64)
        with monkeypatch.context() as patched:
            patched.setattr("bnnconvert.lower.folds.threshold._flips_once", lambda steps: False)
            whole = thresholds_of(steps, k=k, channels=64)
        assert quick is not None
        assert whole is not None
        assert all(map(torch.equal, quick, whole))


def test_a_channel_that_flips_all_the_time_is_left_alone():
    many = Encode(torch.arange(-20.0, 20.0).reshape(1, 1, -1), torch.zeros(1, 1, dtype=torch.bool))
    assert thresholds_of([Step(m, (2, 3, 5, 5)) for m in (affine(3, scale=1.0), many)], k=K, channels=3) is None


def test_values_that_are_not_finite_are_left_alone():
    assert thresholds_of([Step(m, (2, 2, 5, 5)) for m in (affine(2, scale=1e38), SIGN)], k=K, channels=2) is None


def net(*between: nn.Module, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(conv(3, 6, padding=1, bias=bias), *between, conv(6, 4, padding=1))


CHAIN_OF_TWO = ["Encode", "BinaryDot2d", "Encode", "BinaryDot2d", "Affine"]


def same_output(student, x):
    deployed = deploy(student, x[:2])
    with torch.no_grad():
        assert torch.equal(deployed(x), student(x))
    return deployed


def test_norm_and_activation_disappear_between_two_layers():
    student = trace(net(nn.BatchNorm2d(6), nn.PReLU(6), nn.Dropout(), nn.Hardtanh()))
    assert operators(same_output(student, torch.randn(5, 3, 9, 8))) == CHAIN_OF_TWO


def test_pool_moves_onto_the_accumulator_where_the_norm_increases():
    student = trace(net(nn.BatchNorm2d(6), nn.MaxPool2d(3, 2, 1), nn.BatchNorm2d(6)))
    student.get_submodule("1").weight.data.abs_()
    deployed = same_output(student, torch.randn(5, 3, 9, 8))
    assert operators(deployed) == ["Encode", "BinaryDot2d", "MaxPool2d", "Encode", "BinaryDot2d", "Affine"]


def test_pool_before_a_decreasing_norm_moves_too():
    student = trace(net(nn.MaxPool2d(2), nn.BatchNorm2d(6)))
    student.get_submodule("2").weight.data.abs_().neg_()
    deployed = same_output(student, torch.randn(5, 3, 9, 8))
    assert operators(deployed) == ["Encode", "BinaryDot2d", "MaxPool2d", "Encode", "BinaryDot2d", "Affine"]


def test_pool_behind_a_decreasing_norm_stays_float():
    student = trace(net(nn.BatchNorm2d(6), nn.MaxPool2d(2)))
    student.get_submodule("1").weight.data[3] = -1.0
    deployed = same_output(student, torch.randn(5, 3, 9, 8))
    assert operators(deployed) == [
        "Encode",
        "BinaryDot2d",
        "Affine",
        "BatchNorm2d",
        "MaxPool2d",
        "Encode",
        "BinaryDot2d",
        "Affine",
    ]


@pytest.mark.parametrize("kind", ["inputs", "weights"])
def test_several_accumulator_planes_stay_float(kind):
    layer = conv(3, 6, padding=1, **({"inputs": "two"} if kind == "inputs" else {"weights": "residue"}))
    student = trace(nn.Sequential(layer, nn.BatchNorm2d(6), conv(6, 4)))
    assert operators(same_output(student, torch.randn(2, 3, 5, 5))).count("BatchNorm2d") == 1


def test_a_value_that_something_else_reads_stays_float():
    class Shortcut(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn, self.conv2 = conv(4, 4, padding=1), nn.BatchNorm2d(4), conv(4, 4, padding=1)

        def forward(self, x):
            y = self.bn(self.conv1(x))
            return self.conv2(y) + y

    assert "BatchNorm2d" in operators(same_output(trace(Shortcut()), torch.randn(2, 4, 5, 5)))


def test_linear_chain_folds():
    student = trace(nn.Sequential(linear(20, 9), nn.BatchNorm1d(9), nn.Hardtanh(), linear(9, 3, inputs="two")))
    deployed = same_output(student, torch.randn(7, 20))
    assert operators(deployed) == ["Encode", "BinaryDotLinear", "Encode", "BinaryDotLinear", "Affine"]


def test_linear_over_sequences_stays_float():
    """Its channels are on the last axis, and an activation per channel would not see them there."""
    student = trace(nn.Sequential(linear(5, 5), nn.Hardtanh(), linear(5, 5)))
    assert operators(same_output(student, torch.randn(2, 5, 5))).count("Hardtanh") == 1


def test_layer_that_is_called_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = conv(4, 4, padding=1), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.bn(self.conv(self.bn(self.conv(x))))

    student = trace(Twice())
    deployed = same_output(student, torch.randn(2, 4, 5, 5))
    assert operators(deployed) == [*CHAIN_OF_TWO, "BatchNorm2d"]


class Biased(nn.Module):
    """Attention's bias, looked up in a table by the places of query and key, and a bias that is spread wide."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.table = nn.Parameter(torch.randn(7, 4))
        self.register_buffer("places", torch.randint(7, (3, 4)))
        self.wide = nn.Parameter(torch.randn(1, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x) + self.table[self.places.view(-1)].view(3, 4, 4).sum(1)
        return self.last(torch.relu(x)) + self.wide.expand(3, 4)


def test_what_is_made_of_parameters_alone_is_computed_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = bnnconvert.convert(Biased().eval(), recipe="binaryconnect", example_inputs=(torch.randn(2, 3, 4),))
    deployed = deploy(student.model, torch.randn(2, 3, 4))
    read = [str(n.target) for n in deployed.graph.nodes if n.op == "get_attr"]
    assert sorted(tuple(stored(deployed, path).shape) for path in read) == [
        (1, 4),
        (3, 4),
    ]  # the sum of the rows, and the bias that is spread at run time
    report = bnnconvert.export(student, tmp_path / "net.packed.safetensors")
    assert report.predicted_bytes == report.tensor_bytes
    x = torch.randn(5, 3, 4)
    y = bnnconvert.Session(tmp_path / "net.packed.safetensors").run(x.numpy())
    torch.testing.assert_close(torch.from_numpy(y), student.model(x).detach(), rtol=1e-4, atol=1e-5)
