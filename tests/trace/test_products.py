"""Attention becomes one module however its author wrote it, and nothing else does."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnnconvert.graph import module_of
from bnnconvert.layers.attention import Attention
from bnnconvert.rounding import is_rounding
from bnnconvert.trace.tracer import trace

Write = Callable[["Net", Tensor, Tensor, Tensor], Tensor]


class Net(nn.Module):
    """Queries, keys and values (N, 2, T, 4), and what `write` makes of them."""

    def __init__(self, write: Write) -> None:
        super().__init__()
        self.write = write
        self.qkv, self.drop, self.softmax = nn.Linear(5, 24), nn.Dropout(0.3), nn.Softmax(-1)
        self.register_buffer("bias", torch.randn(2, 6, 6))
        self.register_buffer("past", torch.ones(6, 6).tril())
        self.factor = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.write(self, q, k, v)


def _fill(n: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
    return n.drop(F.softmax(scores.masked_fill(n.past[:6, :6] == 0, float("-inf")), dim=-1)) @ v


GATHERED: dict[str, tuple[Write, float | None]] = {
    "function": (lambda n, q, k, v: F.scaled_dot_product_attention(q, k, v), None),
    "function that is causal": (lambda n, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), None),
    "operators": (lambda n, q, k, v: (q @ k.transpose(-2, -1) * 0.5).softmax(dim=-1) @ v, 0.5),
    "functions": (lambda n, q, k, v: torch.matmul(F.softmax(torch.matmul(q, k.mT) / 2, 3), v), 0.5),
    "queries scaled first": (lambda n, q, k, v: n.drop(n.softmax(q * 0.5 @ k.transpose(3, 2))) @ v, 1.0),
    "bias": (lambda n, q, k, v: n.softmax(n.bias + q @ k.transpose(-1, -2) * 2 * 0.2) @ v, 0.4),
    "bias of a sample": (lambda n, q, k, v: n.softmax(q @ k.mT + q.mean((1, 3))[:, None, None]) @ v, 1.0),
    "what is past": (_fill, 0.5),
    "power of a size": (lambda n, q, k, v: n.softmax(q @ k.mT * (q.shape[-1] ** -0.5)) @ v, 0.5),
    "one head": (lambda n, q, k, v: torch.bmm(torch.bmm(q[:, 0], k[:, 0].mT).softmax(-1), v[:, 0]), 1.0),
    "values of another size": (lambda n, q, k, v: n.softmax(q @ k.mT) @ v[..., :3], 1.0),
    "keys in columns": (lambda n, q, k, v: n.softmax(q @ k.reshape(-1, 2, 4, 6)) @ v, 1.0),
}
LEFT: dict[str, Write] = {
    "softmax over queries": lambda n, q, k, v: (q @ k.mT).softmax(-2) @ v,
    "weights that are read": lambda n, q, k, v: (w := (q @ k.mT).softmax(-1)) @ v + w.mean(),
    "scores that are read": lambda n, q, k, v: (s := q @ k.mT).softmax(-1) @ v + s.mean(),
    "factor that is learned": lambda n, q, k, v: (q @ k.mT * n.factor).softmax(-1) @ v,
    "bias that is scaled": lambda n, q, k, v: ((q @ k.mT + n.bias) * 0.5).softmax(-1) @ v,
    "fill that is finite": lambda n, q, k, v: (q @ k.mT).masked_fill(n.past == 0, -1.0).softmax(-1) @ v,
    "values on the left": lambda n, q, k, v: v.mT @ (q @ k.mT).softmax(-1),
    "sigmoid": lambda n, q, k, v: (q @ k.mT).sigmoid() @ v,
    "grouped queries": lambda n, q, k, v: F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True),
}


@pytest.mark.parametrize("name", GATHERED)
def test_attention_is_one_module(name: str) -> None:
    torch.manual_seed(0)
    write, scale = GATHERED[name]
    net, x = Net(write).eval(), torch.randn(3, 6, 5)
    graph = trace(net, (x,))
    torch.testing.assert_close(graph(x), net(x), rtol=1e-4, atol=1e-6)
    (attention,) = [m for n in graph.graph.nodes if isinstance(m := module_of(graph, n), Attention)]
    assert attention.scale == (None if scale is None else pytest.approx(scale))
    made = next(n for n in graph.graph.nodes if isinstance(module_of(graph, n), Attention))
    with torch.no_grad():
        assert made.meta["shape"] == tuple(graph(x).shape)
    assert "attend" in dict(graph.named_children())
    assert attention.dropout == (0.3 if name in ("queries scaled first", "what is past") else 0.0)
    called = {n.target for n in graph.graph.nodes if n.op in ("call_function", "call_method")}
    assert not called & {"softmax", F.softmax, torch.matmul, torch.bmm, F.scaled_dot_product_attention}
    assert not any(isinstance(module_of(graph, n), nn.Softmax | nn.Dropout) for n in graph.graph.nodes)


@pytest.mark.parametrize("name", LEFT)
def test_what_is_no_attention_of_that_kind_stays(name: str) -> None:
    torch.manual_seed(0)
    net, x = Net(LEFT[name]).eval(), torch.randn(3, 6, 5)
    graph = trace(net, (x,))
    torch.testing.assert_close(graph(x), net(x))
    assert not any(isinstance(m, Attention) for m in graph.modules())


def test_dropout_stays_one_of_training() -> None:
    torch.manual_seed(0)
    graph, x = trace(Net(_fill).eval(), (torch.randn(3, 6, 5),)), torch.randn(3, 6, 5)
    assert torch.equal(graph.eval()(x), graph(x))
    graph.train()
    assert not torch.equal(graph(x), graph(x))


def test_outputs_may_differ_by_rounding_of_the_largest() -> None:
    """Attention as one module adds in another order, and a small value may be a difference of large ones."""
    for largest, holds in ((1.0, False), (400.0, True)):
        old = torch.tensor([largest, 0.001])
        assert is_rounding(old, old + torch.tensor([0.0, 0.003]), rtol=1e-4, atol=1e-5) == holds
