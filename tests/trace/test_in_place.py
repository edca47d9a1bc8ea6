"""Models that write into tensors: the graph gives what the model gives, and so does the file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bnnconvert
from bnnconvert.errors import RefusalError
from bnnconvert.trace.tracer import trace


class Net(nn.Module):
    """Convolutions around `write`, which gets the outputs of the first two."""

    def __init__(self, write: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.c, self.write = nn.Conv2d(8, 8, 1), write

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.c(self.write(x, self.b(x)))


def _slice(x: Tensor, y: Tensor) -> Tensor:
    y[:, :4] = x[:, 4:]
    return y


def _sum_into_slice(x: Tensor, y: Tensor) -> Tensor:
    y[:, 1:, :, 2:] += x[:, 1:, :, 2:]
    return y


def _view(x: Tensor, y: Tensor) -> Tensor:
    part = y[:, 1:5].view(y.size(0), 4, -1)
    part.add_(1.0)
    return y


def _number(x: Tensor, y: Tensor) -> Tensor:
    y[:, 0] = 0
    y[:, :, 2, 3] = 7.0
    return y


def _steps(x: Tensor, y: Tensor) -> Tensor:
    y[:, ::2].mul_(2.0)
    return y


def _fresh(x: Tensor, y: Tensor) -> Tensor:
    z = torch.zeros_like(x)
    z[:, 4:] = y[:, :4]
    z[:, :4] = x[:, :4]
    return z


def _turned(x: Tensor, y: Tensor) -> Tensor:
    y.transpose(2, 3)[:, :, 0] += 1
    y.permute(3, 0, 2, 1)[2].unsqueeze(1).squeeze(1).mul_(3)
    return y


def _twice(x: Tensor, y: Tensor) -> Tensor:
    part = y[:, :6]
    part[:, 2:] = x[:, :4]
    part[:, :3] = part[:, 3:] * 2
    return y + part[:, :1]


def _broadcast(x: Tensor, y: Tensor) -> Tensor:
    y[:, 2:5] = x[:, :1]
    return y


def _whole(x: Tensor, y: Tensor) -> Tensor:
    old = y
    y.add_(x)
    F.relu_(y)
    return old


def _mask(x: Tensor, y: Tensor) -> Tensor:
    y.masked_fill_(x > 0.5, 0.25)
    return y


WRITES = {f.__name__[1:]: f for f in (_slice, _sum_into_slice, _view, _number, _steps, _fresh, _turned, _twice)}
WRITES |= {f.__name__[1:]: f for f in (_broadcast, _whole, _mask)}


@pytest.mark.parametrize("name", WRITES)
def test_what_is_written_is_read_in_graph_student_and_file(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Net(WRITES[name]).eval(), torch.randn(3, 3, 6, 6)
    graph = trace(net, (x,))
    assert graph.meta["rung"] != "whole"
    torch.testing.assert_close(graph(x), net(x))
    student = bnnconvert.convert(net, "bwn", example_inputs=(x,))
    assert [p.decision for p in student.plan.layers] == ["float", "weight-only", "float"]
    student.model.train()(x).mean().backward()
    expected = student.model.eval()(x).detach()
    bnnconvert.export(student, tmp_path / "net.packed.safetensors")
    actual = bnnconvert.Session(tmp_path / "net.packed.safetensors").run(x[:2].numpy())
    np.testing.assert_allclose(actual, expected[:2], rtol=1e-4, atol=1e-5)


def test_a_part_that_is_read_under_its_old_name_is_refused(tmp_path: Path) -> None:
    def late(x: Tensor, y: Tensor) -> Tensor:
        before = y[:, 2:]
        y[:, :4] = 0.0
        return torch.cat([before, y[:, :2]], 1)

    student = bnnconvert.convert(Net(late).eval(), "bwn", example_inputs=(torch.randn(2, 3, 6, 6),))
    with pytest.raises(RefusalError, match="reads under another name afterwards"):
        bnnconvert.export(student, tmp_path / "net.packed.safetensors")
    assert not list(tmp_path.iterdir())
