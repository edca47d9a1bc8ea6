"""Models that symbolic tracing cannot follow, as their code decides by shapes and types."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from bnnconvert.graph import is_call_of
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
    reason = graph.meta["opaque"]["1"]
    assert "number of samples" in reason
    assert f"{Path(__file__).name}:" in reason
    assert "for i in range(x.shape[0])" in reason
    x = torch.randn(5, 3)
    torch.testing.assert_close(graph(x), module(x))
