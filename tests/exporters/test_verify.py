"""Verification: every difference is accounted for, and only values at a sign's boundary excuse one."""

import pytest
import torch
from torch import nn

from bnnconvert import convert
from bnnconvert.exporters.boundary import ROUNDING
from bnnconvert.exporters.verify import layer_boundary, student_bits, verify
from bnnconvert.report.verification import verify_notes
from bnnconvert.runtime import Session, native
from tests.architectures import ARCHITECTURES
from tests.sessions import draft
from tests.students import INPUTS, Block, conv, trace


@pytest.fixture
def student():
    torch.manual_seed(0)
    return trace(Block())


@pytest.fixture
def x():
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_faithful_session_passes(student, x):
    report = verify(student, Session(draft(student, x)), x.split(5))
    assert report.passed
    assert report.samples == 16
    assert report.agreement == 1.0
    assert report.unexplained_samples == 0
    assert [layer.layer for layer in report.layers] == ["conv1", "conv2", "fc1"]
    assert report.layers[0].bits == 16 * 8 * 8 * 8


def test_another_students_session_fails(student, x):
    session = Session(draft(student, x))
    student.get_submodule("bn1").bias.data += 0.5
    report = verify(student, session, [x])
    assert not report.passed
    assert report.layers[0].flips == 0
    assert report.layers[1].first > report.layers[1].first_boundary


def test_an_inexact_layer_fails_even_where_nothing_shows(student, x):
    """The first channel of `conv1` is made constant, so that its filter cannot show in any later bit."""
    norm = student.get_submodule("bn1")
    norm.weight.data[0], norm.bias.data[0] = 0.0, 1.0
    session = Session(draft(student, x))
    student.get_submodule("conv1").weight.data[0].neg_()
    report = verify(student, session, [x])
    assert report.largest_difference < 1e-6
    assert report.layers[0].inexact > 0
    assert [layer.inexact for layer in report.layers[1:]] == [0, 0]
    assert not report.passed


def test_a_difference_without_any_flip_fails(student, x):
    session = Session(draft(student, x))
    student.get_submodule("fc2").bias.data += 0.1
    report = verify(student, session, [x])
    assert sum(layer.flips for layer in report.layers) == 0
    assert report.differing_samples == report.unexplained_samples == 16
    assert not report.passed


class Edge(nn.Module):
    """A binary layer whose input is x + shift, so that a test can put values on the edge."""

    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.zeros(1))
        self.conv1, self.conv2 = conv(2, 2, 1, bias=False), conv(2, 3, 1, bias=False)

    def forward(self, x):
        return self.conv2(self.conv1(x + self.shift))


@pytest.mark.parametrize(("distance", "passes"), [(ROUNDING / 4, True), (ROUNDING * 8, False)])
def test_flips_are_excused_at_the_boundary_only(distance, passes):
    student = trace(Edge())
    x = torch.ones(3, 2, 4, 4)
    x[1, 0, 2, 2] = -distance / 2
    session = Session(draft(student, x))
    student.shift.fill_(distance)
    report = verify(student, session, [x])
    first = report.layers[0]
    assert (first.flips, first.first) == (1, 1)
    assert first.boundary == int(passes)
    assert report.passed == passes
    assert report.differing_samples == 1


def test_a_nan_is_never_at_a_boundary():
    layer = conv(1, 1, 1)
    assert not layer_boundary(layer, torch.tensor([float("nan"), 1.0]).reshape(1, 1, 1, 2)).any()


@pytest.mark.parametrize("inputs", [name for name in INPUTS if name != "none"])
def test_encoder_and_planes_of_a_binarizer_are_the_same_map(inputs):
    layer = conv(3, 2, 1, inputs=inputs)
    x = torch.randn(4, 3, 5, 5)
    x[0, 0, 0, :5] = torch.tensor([0.0, -0.0, 0.5, 1.0, -1.0])
    from bnnconvert.layers import operators

    encoder = layer.input_binarizer.encoder()
    assert torch.equal(operators.encode(x, encoder.thresholds, encoder.start), student_bits(layer, x))


def test_the_students_mode_is_left_alone(student, x):
    session = Session(draft(student, x))
    student.train()
    student.get_submodule("bn1").eval()
    verify(student, session, [x])
    assert student.training
    assert not student.get_submodule("bn1").training


@pytest.mark.skipif(native.library() is None, reason="installed without the native engine")
def test_the_native_engine_is_compared_with_the_portable_one(student, x, monkeypatch):
    session = Session(draft(student, x))
    report = verify(student, session, [x])
    assert report.passed
    assert (report.isa, report.engine_differing, report.engine_unexplained) == (session.isa, 0, 0)
    assert f"The native engine ({session.isa}) agrees." in verify_notes(report)
    right = session.run
    monkeypatch.setattr(session, "run", lambda x: right(x) + 1)
    report = verify(student, session, [x])
    assert not report.passed
    assert report.engine_differing == report.engine_unexplained == len(x)
    assert "the native engine" in report.failure
    assert report.unexplained_samples == 0


@pytest.mark.skipif(native.library() is None, reason="installed without the native engine")
def test_a_differing_sample_is_looked_at_with_all_its_frames(monkeypatch):
    """Between layers the frames of a video are samples of their own."""
    torch.manual_seed(0)
    net, shape = ARCHITECTURES["video"]
    x = torch.randn(3, *shape)
    student = convert(net(), "xnor", example_inputs=(x,)).model
    session = Session(draft(student, x))
    right = session.run

    def wrong_in_one(x):
        y = right(x).copy()
        y[1] += 1
        return y

    monkeypatch.setattr(session, "run", wrong_in_one)
    report = verify(student, session, [x])
    assert report.engine_differing == 1
