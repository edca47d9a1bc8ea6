"""Sensitivity: every binary layer measured alone, on a teacher that knows the digits."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnnconvert
from bnnconvert.errors import UsageError
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.load.data import load_data
from bnnconvert.pipeline.sensitivity import Ruler, sensitivity
from bnnconvert.report.sensitivity import plot_sensitivity, sensitivity_table
from bnnconvert.values.sensitivity import Cost, SensitivityReport
from tests.cli.conftest import small_net


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    """The small network after a minute's worth of steps in a second."""
    torch.manual_seed(0)
    net, data = small_net().train(), load_data("digits")
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(8):
        for part in torch.randperm(len(data.train)).split(64):
            _, labels = data.train.batch(part)
            loss = F.cross_entropy(net(data.inputs(data.train, part)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


def test_a_layer_alone_costs_something_and_alone_float_helps(teacher: nn.Module) -> None:
    student = bnnconvert.convert(teacher, "xnor", data="digits")
    before = {name: value.clone() for name, value in student.model.state_dict().items()}
    report = sensitivity(student, "digits", samples=300, device="cpu")
    assert report.teacher_accuracy > 0.9
    assert report.samples == 300
    assert [layer.layer for layer in report.layers] == [
        path for path, module in student.model.named_modules() if isinstance(module, BinaryLayer)
    ]
    for layer in report.layers:
        assert layer.alone_binary.divergence > 0.01
        assert layer.alone_float.divergence < report.binary.divergence
        assert layer.packed_bytes < layer.float_bytes
    # One binary layer in the network: alone it is the whole student.
    (only,) = report.layers
    assert only.alone_binary.divergence == pytest.approx(report.binary.divergence, rel=0.2)
    assert all(torch.equal(value, before[name]) for name, value in student.model.state_dict().items())
    assert len(sensitivity_table(report).rows) == 1


def test_the_teacher_itself_costs_nothing(teacher: nn.Module) -> None:
    student = bnnconvert.convert(teacher, "xnor", data="digits")
    ruler = Ruler(student.teacher, load_data("digits"), samples=200, device="cpu")
    with torch.no_grad():
        for norm in (m for m in student.teacher.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.momentum = 0.0
    cost = ruler.cost(student.teacher)
    assert cost.divergence < 0.02  # batch norm's own statistics, on other samples
    assert cost.accuracy == pytest.approx(ruler.teacher_accuracy, abs=0.02)


def test_plot_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"bnnconvert\[plot\]"):
        plot_sensitivity(SensitivityReport("x", "xnor", 1, 1.0, Cost(0.0, 1.0), ()), tmp_path / "x.png")
