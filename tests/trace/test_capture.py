"""Models that symbolic tracing cannot follow, as their code decides by shapes and types."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

import bnnconvert
from bnnconvert.errors import RefusalError
from bnnconvert.graph import is_call_of
from bnnconvert.trace.dataflow import layer_facts
from bnnconvert.trace.tracer import trace


class ByShape(nn.Module):
    """Decides by size, type and an argument's default, joins all but the samples, reads and writes tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.shift = nn.Parameter(torch.randn(4, 1, 1))
        self.register_buffer("order", torch.tensor([3, 1, 0, 2]))
        self.plain = torch.randn(4, 1, 1)
        self.head = nn.Linear(4 * 16, 5)
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor, again: bool = False) -> Tensor:
        assert isinstance(x, Tensor)
        if again or x.shape[-1] != x.shape[-2]:
            raise ValueError("square images only")
        x = self.conv(x) + self.shift
        for channel in range(x.shape[1] - 2):
            x = x * (2 - channel)
        left, right = x[:, self.order].split(2, 1)
        x = torch.cat([left, 1 - right], 1) + torch.arange(4).view(1, 4, 1, 1) * self.plain
        x[:, :1] = 0
        self.cache["last"] = x
        return self.head(x.view(x.shape[0], -1))


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_decisions_by_shape_are_taken_and_the_number_of_samples_stays_free(samples: int) -> None:
    torch.manual_seed(0)
    module = ByShape().eval()
    with pytest.raises((AssertionError, torch.fx.proxy.TraceError)):
        torch.fx.symbolic_trace(module)
    graph = trace(module, (torch.randn(2, 3, 4, 4),))
    x = torch.randn(samples, 3, 4, 4)
    torch.testing.assert_close(graph(x), module(x))


def test_the_graph_is_canonical_and_the_model_keeps_nothing_of_the_tracing() -> None:
    module = ByShape().eval()
    graph = trace(module, (torch.randn(2, 3, 4, 4),))
    assert any(is_call_of(graph, node, nn.Flatten) for node in graph.graph.nodes)
    assert {str(n.target) for n in graph.graph.nodes if is_call_of(graph, n, nn.Conv2d | nn.Linear)} == {"conv", "head"}  # type: ignore[arg-type]
    assert graph.get_submodule("conv").weight is module.conv.weight
    assert not any(isinstance(t, FakeTensor) for t in (*module.cache.values(), *module.state_dict().values()))
    assert set(module.state_dict()) == set(ByShape().state_dict())


def test_sizes_may_be_computed_from_the_number_of_samples() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            n, c, h, w = x.shape
            assert (c, h, w) == (6, 4, 4)
            x = x.view(n, c, 2, 2, 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(n * 4, 4, c)
            return {"tokens": self.linear(x).reshape(n, 4 * 4, c), "mean": x.mean(1)}

    module = Windows().eval()
    graph = trace(module, (torch.randn(2, 6, 4, 4),))
    x = torch.randn(5, 6, 4, 4)
    for key, value in module(x).items():
        torch.testing.assert_close(graph(x)[key], value)


def test_code_that_depends_on_the_number_of_samples_is_called_as_it_is_and_named_by_file_and_line() -> None:
    class Each(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[i] * i for i in range(x.shape[0])])

    module = nn.Sequential(nn.Linear(3, 3), Each())
    graph = trace(module, (torch.randn(2, 3),))
    assert "number of samples" in graph.meta["opaque"]["1"]
    x = torch.randn(5, 3)
    torch.testing.assert_close(graph(x), module(x))
    with pytest.raises(RefusalError, match=r"Each cannot be traced: .*number of samples"):
        trace(Each(), (torch.randn(2, 3),))


class Router(nn.Module):
    """Takes one way or the other by the values of its input, as experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(4, 4, 3, padding=1)
        self.right = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor | int]:
        way = self.left if x.mean() > 0 else self.right
        return {"y": way(x), "ways": 2}


class Routed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.router = Router()
        self.after = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.router(self.stem(x))["y"]
        if x.shape[1] > 3:
            x = self.after(x)
        return self.head(x.view(x.shape[0], 4, -1).mean(2))


def test_a_module_that_decides_by_values_is_called_as_it_is_and_the_rest_is_a_graph(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Routed().eval()
    graph = trace(module, (torch.randn(2, 3, 4, 4),))
    for sign in (-1.0, 1.0):  # both ways
        x = torch.randn(3, 3, 4, 4)
        with torch.no_grad():
            module.stem.bias.fill_(9 * sign)
        assert bool(module.stem(x).mean() > 0) == (sign > 0)
        torch.testing.assert_close(graph(x), module(x))
    by_path = {f.path: f.obstacle or "" for f in layer_facts(graph)}
    assert set(by_path) == {"stem", "after", "head", "router.left", "router.right"}
    assert "'router' cannot be followed" in by_path["router.left"]
    assert "test_capture.py" in by_path["router.left"]
    assert "in `way = self.left if x.mean() > 0 else self.right`" in by_path["router.left"]
    assert not by_path["stem"]
    assert not by_path["after"]

    student = bnnconvert.convert(module, recipe="xnor", example_inputs=(torch.randn(2, 3, 4, 4),))
    assert {p.facts.path for p in student.plan.layers if p.decision == "binary"} == {"after"}
    assert any("'router' is called as it is" in note for note in student.notes)
    student.model.train()
    student.model(torch.randn(4, 3, 4, 4)).square().sum().backward()
    assert student.model.get_submodule("after").weight.grad is not None
    with pytest.raises(RefusalError, match="router runs code that no file can hold"):
        bnnconvert.export(student, tmp_path / "net.packed.safetensors")
    assert not list(tmp_path.iterdir())
