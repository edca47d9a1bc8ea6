"""Tracing: the canonical form, sharing, shapes, the user's own paths, refusals."""

import operator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnnconvert.errors import UsageError, VerificationError
from bnnconvert.graph import module_of, shape_of
from bnnconvert.trace.tracer import trace
from tests.networks import Functional, Residual, plain, randomise


def called(module: nn.Module, *x: Tensor) -> list[tuple[str, str]]:
    graph = trace(module, x)
    return [(str(n.target), type(module_of(graph, n)).__name__) for n in graph.graph.nodes if n.op == "call_module"]


def test_functional_calls_become_modules_below_the_users_path() -> None:
    calls = dict(called(Functional(), torch.randn(2, 1, 8, 8)))
    assert calls["relu"] == "ReLU"
    assert calls["max_pool"] == calls["max_pool_1"] == "MaxPool2d"
    assert calls["flatten"] == "Flatten"
    assert calls["dropout"] == "Dropout"


def test_a_functional_call_in_a_submodule_stays_in_it() -> None:
    outer = nn.Sequential(Functional(), nn.Identity())
    assert ("0.relu", "ReLU") in called(outer, torch.randn(2, 1, 8, 8))


def test_a_users_module_may_do_nothing_but_call_functions() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.flatten(F.relu(x), 1)

    graph = trace(nn.Sequential(nn.Conv2d(3, 2, 1), Flat(), nn.Linear(8, 2)).eval(), (torch.randn(2, 3, 2, 2),))
    assert [n.target for n in graph.graph.nodes if n.op == "call_module"] == ["0", "1.relu", "1.flatten", "2"]


@pytest.mark.parametrize("model", [Residual, Functional])
def test_graph_computes_what_the_model_computes(model: type[nn.Module]) -> None:
    module = randomise(model())
    x = torch.randn(3, *module.input_shape[1:])
    torch.testing.assert_close(trace(module, (x,))(x), module(x), rtol=0, atol=0)


def test_a_stateless_module_used_twice_is_unshared_and_a_stateful_one_is_not() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.conv(self.act(self.conv(x))))

    calls = called(Shared(), torch.randn(1, 4, 5, 5))
    assert calls == [("conv", "Conv2d"), ("act", "ReLU"), ("conv", "Conv2d"), ("act_1", "ReLU")]


def test_in_place_activations_are_made_ordinary_and_the_users_model_is_not_touched() -> None:
    module = Residual().eval()
    graph = trace(module, (torch.randn(2, 3, 8, 8),))
    assert not graph.get_submodule("layer1.relu").inplace
    assert module.layer1.relu.inplace
    adds = [n for n in graph.graph.nodes if n.op == "call_function"]
    assert [n.target for n in adds] == [operator.add, operator.add]


def test_every_node_has_its_shape() -> None:
    graph = trace(Residual().eval(), (torch.randn(2, 3, 8, 8),))
    shapes = {n.name: shape_of(n) for n in graph.graph.nodes}
    assert shapes["layer2_conv1"] == (2, 12, 4, 4)
    assert shapes["fc"] == (2, 5)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda x: F.hardtanh(x, -2.0, 2.0), "Hardtanh"),
        (lambda x: F.relu6(x), "ReLU6"),
        (lambda x: F.leaky_relu(x, 0.2), "LeakyReLU"),
        (lambda x: F.avg_pool2d(x, 2, stride=2), "AvgPool2d"),
        (lambda x: F.adaptive_avg_pool2d(x, (1, 1)), "AdaptiveAvgPool2d"),
        (lambda x: x.mean((2, 3)), "AdaptiveAvgPool2d"),
        (lambda x: x.mean(dim=(-2, -1), keepdim=True), "AdaptiveAvgPool2d"),
        (lambda x: x.relu(), "ReLU"),
        (lambda x: x.reshape(x.shape[0], -1), "Flatten"),
        (lambda x: x.flatten(start_dim=1), "Flatten"),
        (lambda x: torch.sigmoid(x), "Sigmoid"),
        (lambda x: F.gelu(x, approximate="tanh"), "GELU"),
    ],
)
def test_each_functional_form_keeps_its_values(call: object, expected: str) -> None:
    class One(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return call(x)  # type: ignore[operator, no-any-return]

    x = torch.randn(2, 3, 4, 4)
    graph = trace(One(), (x,))
    kinds = [type(module_of(graph, n)).__name__ for n in graph.graph.nodes if n.op == "call_module"]
    assert kinds[0] == expected
    torch.testing.assert_close(graph(x), One()(x))


@pytest.mark.parametrize("call", [lambda x: x.mean(1), lambda x: F.max_pool2d(x, 2, return_indices=True)[0]])
def test_forms_without_a_module_stay_as_they_are(call: object) -> None:
    class One(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return call(x)  # type: ignore[operator, no-any-return]

    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(trace(One(), (x,))(x), One()(x))


def test_functional_batch_norm_becomes_a_module_with_its_tensors() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.rand(3)), nn.Parameter(torch.rand(3))
            self.register_buffer("mean", torch.rand(3))
            self.register_buffer("var", torch.rand(3) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, False, 0.1, 1e-3)

    x, module = torch.randn(2, 3, 4, 4), Norm()
    assert called(module, x) == [("norm", "BatchNorm2d")]
    torch.testing.assert_close(trace(module, (x,))(x), module(x))


def test_a_wrong_input_shape_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--input-shape"):
        trace(plain(), (torch.randn(2, 4, 8, 8),))


def test_a_model_that_differs_from_call_to_call_is_caught() -> None:
    class Random(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(3)

    with pytest.raises(VerificationError, match="deterministic"):
        trace(Random(), (torch.randn(2, 3),))
