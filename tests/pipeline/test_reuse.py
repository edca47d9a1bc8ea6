"""Layers that the model reuses, ties or calls on a condition: the student is right, and so is its packed file."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bnnconvert


class Base(nn.Module):
    """Ends that stay float, and layers between for the ways of use below."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 2, 1)
        self.one, self.two = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)


class CalledTwice(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(F.relu(self.one(self.stem(x))))))


class TwoNames(Base):
    """One module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.two = self.one
        self.three = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.three(self.two(F.relu(self.one(self.stem(x))))))


class TiedWeight(Base):
    """Two modules with one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(F.relu(self.one(self.stem(x)))))


class WeightRead(Base):
    """Code that reads a layer's weight besides calling it."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(F.relu(self.one(self.stem(x))))
        return self.head(y * self.one.weight.abs().mean())


class TurnedBack(Base):
    """A weight used forwards by the layer and backwards by a function, as autoencoders tie them."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(F.relu(self.one(self.stem(x))))
        return self.head(F.conv_transpose2d(y, self.one.weight, padding=1))


class OnFlag(Base):
    """A way chosen by the module's own setting."""

    deep = True

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.stem(x))
        return self.head(self.two(x) if self.deep else x)


class OnShape(Base):
    """A way chosen by the input's size."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.stem(x))
        return self.head(self.two(x) if x.shape[-1] > 4 else x)


USES = [CalledTwice, TwoNames, TiedWeight, WeightRead, TurnedBack, OnFlag, OnShape]


@pytest.mark.parametrize("recipe", ["bwn", "xnor"])
@pytest.mark.parametrize("use", USES)
def test_the_packed_file_gives_what_the_student_gives(use: type[Base], recipe: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6)
    student = bnnconvert.convert(use(), recipe, example_inputs=(x,))
    assert any(layer.decision != "float" for layer in student.plan.layers)
    student.model.train()(x).square().sum().backward()
    student.model.eval()
    bnnconvert.export(student, tmp_path / "net.packed.safetensors")
    actual = torch.from_numpy(bnnconvert.Session(tmp_path / "net.packed.safetensors").run(x.numpy()))
    torch.testing.assert_close(actual, student.model(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("use", USES)
def test_the_teacher_gives_what_the_model_gives(use: type[Base]) -> None:
    torch.manual_seed(0)
    module, x = use().eval(), torch.randn(2, 3, 6, 6)
    student = bnnconvert.convert(module, "bwn", example_inputs=(x,))
    other = torch.randn(3, 3, 6, 6)
    torch.testing.assert_close(student.teacher(other), module(other))


class OnTwoSizes(Base):
    """One layer on two scales, as the heads of a pyramid are."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.two(self.one(x) + F.interpolate(self.one(F.avg_pool2d(x, 2)), scale_factor=2.0)))


def test_a_module_that_is_called_twice_is_one_binary_layer() -> None:
    for use in (CalledTwice, TwoNames):
        student = bnnconvert.convert(use(), "reactnet", input_shape=(1, 3, 6, 6))
        assert [p.facts.path for p in student.plan.layers if p.decision == "binary"].count("one") == 1
        assert student.model.get_submodule("one").is_weight_only is False
        norms = [n for n in student.model.graph.nodes if str(n.target).startswith("one_norm")]
        assert len({n.target for n in norms}) == len(norms)


def test_a_module_that_is_called_on_two_sizes_stays_float() -> None:
    plan = bnnconvert.convert(OnTwoSizes(), "xnor", input_shape=(1, 3, 6, 6)).plan
    layer = plan.layer("one")
    assert layer is not None
    assert layer.reason == "the module is called 2 times on inputs of different sizes"
