"""From deployed graph to program: names, sizes that follow the batch, outputs, and refusals that name the layer."""

import numpy as np
import pytest
import torch
from torch import nn

from bnnconvert.errors import RefusalError
from bnnconvert.layers.conv2d import BinaryConv2d
from bnnconvert.lower.deploy import deploy, deploy_bytes, tensor_bytes
from bnnconvert.lower.program import lower
from bnnconvert.runtime import Session
from bnnconvert.values.program import Batch, Program
from tests.sessions import draft
from tests.students import INPUTS, WEIGHTS, Block, conv, linear, trace


def lowered(module: nn.Module, x: torch.Tensor) -> Program:
    return lower(deploy(trace(module), x), x)[0]


def run_as_program(module: nn.Module, x: torch.Tensor):
    student = trace(module)
    with torch.no_grad():
        return Session(draft(student, x)).run(x.numpy()), student(x)


def assert_same(actual: np.ndarray, expected: torch.Tensor, inputs: str) -> None:
    """Exact for binary inputs, whose sums are integers; float ones are summed in another order."""
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if inputs == "none" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(torch.from_numpy(actual), expected, **tolerance)


def test_nodes_carry_the_users_paths():
    program = lowered(Block(), torch.randn(2, 3, 8, 8))
    assert [n.layer for n in program.nodes if n.op == "bnnconvert.binary_conv2d"] == ["conv1", "conv2"]
    assert {"stem", "bn0", "bn2", "pool", "fc1", "bn3", "fc2"} <= {n.layer for n in program.nodes}
    assert Program.model_validate_json(program.to_json()) == program


class Reshapes(nn.Module):
    """Every usual way to write a shape with a free batch."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = conv(3, 4), linear(4 * 16, 6)

    def forward(self, x):
        y = self.conv(x)
        a = self.fc(y.view(y.size(0), -1))
        b = y.reshape(x.shape[0] * 4, 16).reshape(-1, 64)
        c = torch.flatten(y, 1)
        d = y.view(-1, 64)
        e = y.permute(0, 2, 3, 1).reshape(-1, 4).mean(1).view(x.size(0), 16)
        return a, torch.cat([b, c, d, e], 1)


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_shapes_follow_the_batch(samples):
    actual, expected = run_as_program(Reshapes(), torch.randn(samples, 3, 6, 6))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(a), e)


def test_multiples_of_the_batch_are_declared():
    program = lowered(Reshapes(), torch.randn(2, 3, 6, 6))
    assert any(spec.shape[0] == Batch(batch=16) for spec in program.specs().values())


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv(3, 4)

    def forward(self, x):
        y = self.conv(x)
        one, two = y.chunk(2, 1)
        return {"a": (y, [one, None]), "b": {1: two}, "again": y}


def test_outputs_keep_their_structure():
    actual, expected = run_as_program(Nested(), torch.randn(3, 3, 5, 5))
    assert list(actual) == ["a", "b", "again"]
    assert isinstance(actual["a"], tuple)
    assert isinstance(actual["a"][1], list)
    assert actual["a"][1][1] is None
    assert torch.equal(torch.from_numpy(actual["b"][1]), expected["b"][1])
    assert torch.equal(torch.from_numpy(actual["a"][0]), expected["a"][0])


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu = conv(3, 4), nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.conv(x)
        z = self.relu(y)
        z += 1
        return y * 2 + z


def test_in_place_operators_are_followed():
    actual, expected = run_as_program(InPlace(), torch.randn(3, 3, 5, 5))
    assert torch.equal(torch.from_numpy(actual), expected)


class Coordinates(nn.Module):
    """Adds each pixel's place, and a mask of the batch's size."""

    def forward(self, x):
        rows, columns = torch.meshgrid(torch.arange(x.shape[2]), torch.arange(x.shape[3]), indexing="ij")
        place = torch.stack([rows, columns]).float()[None].to(x.device).repeat(x.size(0), 1, 1, 1)
        free = ~torch.zeros((x.shape[0], 1, x.shape[2], x.shape[3]), dtype=torch.bool, device=x.device)
        return torch.cat([x * free, place], 1) / torch.linspace(1, 2, x.shape[3])


def test_what_is_made_from_nothing_is_stored_unless_it_follows_the_batch():
    x = torch.randn(3, 2, 4, 5)
    actual, expected = run_as_program(Coordinates(), x)
    np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-6)
    program, tensors = lower(deploy(trace(Coordinates()), x), x)
    assert sorted(t.shape for t in tensors.values()) == [(1, 2, 4, 5), (5,)]
    assert "aten.zeros.default" in {node.op for node in program.nodes}


FUNCTIONS = {
    "swapaxes": lambda x: torch.swapaxes(x, 1, 2),
    "tensor_split": lambda x: torch.cat(torch.tensor_split(x, (1, 3), dim=1)[::2], 1),
    "movedim": lambda x: torch.movedim(x, (1, 2), (3, 1)),
    "broadcast_to": lambda x: x[:, :1].broadcast_to(x.shape),
    "arithmetic": lambda x: torch.divide(torch.multiply(x, 3), 2).subtract(x) % 2.0,
    "lerp": lambda x: torch.lerp(x, x.square(), 0.25),
    "reductions": lambda x: torch.logsumexp(x, (2, 3)) + x.prod(2).argmin(2),
    "topk": lambda x: x.flatten(1).topk(3)[0],
    "steps": lambda x: x.ceil() + x.trunc() + x.abs().log1p() + x.expm1(),
}


class Function(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.function = FUNCTIONS[name]

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operators_outside_layers_run_as_the_model_calls_them(name):
    actual, expected = run_as_program(Function(name), torch.randn(3, 4, 2, 5))
    torch.testing.assert_close(torch.from_numpy(np.ascontiguousarray(actual)), expected)


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


def test_random_numbers_are_not_stored():
    x = torch.randn(2, 4)
    with pytest.raises(RefusalError, match=r"operator aten\.randn"):
        lower(deploy(trace(Noise()), x), x)


class Frames(nn.Module):
    """Three batches through one layer as one."""

    def __init__(self):
        super().__init__()
        self.conv = conv(2, 4)

    def forward(self, x):
        first, second, third = torch.chunk(self.conv(torch.cat([x, x + 1, x * 2])), 3)
        return (first * second).mean((2, 3)), third


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_batches_that_were_one_come_apart(samples):
    actual, expected = run_as_program(Frames(), torch.randn(samples, 2, 5, 5))
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(one), other)


def test_nothing_that_evaluation_skips_is_stored():
    student = trace(Block())
    x = torch.randn(2, 3, 8, 8)
    _, tensors = lower(deploy(student, x), x)
    assert not [name for name in tensors if "num_batches_tracked" in name or name.startswith(("bn1.", "act1."))]
    assert sum(t.nbytes for t in tensors.values()) == deploy_bytes(student, x)


def test_shared_layer_and_repeated_attribute_are_counted_once():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.register = conv(4, 4, padding=1), self.register_buffer("shift", torch.randn(4, 1, 1))

        def forward(self, x):
            return self.conv(self.conv(x + self.shift) - self.shift)

    student, x = trace(Shared()), torch.randn(2, 4, 5, 5)
    deployed = deploy(student, x)
    assert sum(t.nbytes for t in lower(deployed, x)[1].values()) == tensor_bytes(deployed)


class Fixed(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.conv, self.run = conv(3, 4), forward

    def forward(self, x):
        return self.run(self.conv(x))


def test_a_binary_layer_over_what_the_model_makes_itself_is_computed_at_once():
    class Places(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.places = conv(3, 4), conv(2, 4, 1, inputs="none")

        def forward(self, x):
            grid = torch.linspace(-1, 1, 32).reshape(1, 2, 4, 4).sin()
            return self.conv(x) + self.places(grid)

    student, x = trace(Places()), torch.randn(3, 3, 6, 6)
    session = Session(draft(student, x))
    assert {node.layer for node in session.program.nodes if node.op.startswith("bnnconvert.")} == {"conv"}
    np.testing.assert_allclose(session.run(x.numpy()), student(x).detach(), rtol=1e-5, atol=1e-6)


def _late(y):
    before = y[:, 2:]
    y[:, :3].zero_()
    return torch.cat([before, y[:, :2]], 1)


REFUSED = {
    "fixed batch": (lambda y: y.view(2, -1), "batch"),
    "unknown operator": (lambda y: torch.fft.rfft(y).abs(), "operator"),
    "changed copy": (lambda y: y.flatten(1).add_(1), "other names"),
    "view that is read later": (_late, "another name afterwards"),
    "complex result": (lambda y: torch.complex(y, y), "complex"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_a_program_is_refused(name):
    forward, word = REFUSED[name]
    with pytest.raises(RefusalError, match=word):
        lowered(Fixed(forward), torch.randn(2, 3, 6, 6))


def test_layers_in_an_early_stage_are_refused_by_name():
    student = trace(Block())
    student.get_submodule("conv2").inputs_are_binary = False
    with pytest.raises(RefusalError, match=r"conv2.*fine-tuning"):
        deploy(student, torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize(("parameter", "value"), [("weight", float("nan")), ("bias", float("inf"))])
def test_diverged_layers_are_refused_by_name(parameter, value):
    student = trace(Block())
    getattr(student.get_submodule("conv2"), parameter).data[0] = value
    with pytest.raises(RefusalError, match="conv2"):
        deploy(student, torch.randn(1, 3, 8, 8))


def test_several_planes_over_sequences_are_refused():
    with pytest.raises(RefusalError, match="one-bit"):
        deploy(trace(nn.Sequential(linear(5, 3, inputs="two"))), torch.randn(2, 4, 5))


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(
    "settings", [{}, {"stride": 2, "padding": 2, "pad": "one"}, {"groups": 3, "dilation": (1, 2), "padding": (3, 1)}]
)
def test_given_the_same_input_a_binary_layer_is_exact(inputs, weights, settings):
    """Layer by layer: the student in evaluation mode and the session give the very same floats."""
    torch.manual_seed(0)
    layer = nn.Sequential(conv(9, 6, inputs=inputs, weights=weights, **settings))
    assert isinstance(layer[0], BinaryConv2d)
    x = torch.randn(3, 9, 6, 7)
    x[0, 0, 0, :4] = torch.tensor([0.0, -0.0, 0.5, -1.0])
    actual, expected = run_as_program(layer, x)
    assert_same(actual, expected, inputs)


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_given_the_same_input_a_binary_linear_layer_is_exact(inputs, weights):
    x = torch.randn(3, 21)
    x[0, :4] = torch.tensor([0.0, -0.0, 0.5, -1.0])
    actual, expected = run_as_program(nn.Sequential(linear(21, 6, inputs=inputs, weights=weights)), x)
    assert_same(actual, expected, inputs)
