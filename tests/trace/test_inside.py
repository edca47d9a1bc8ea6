"""Code that decides by values is called as it is, and what it calls becomes graphs of its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnnconvert
from bnnconvert.errors import RefusalError, UsageError
from bnnconvert.graph import inner_graphs
from bnnconvert.pipeline import convert_model, open_run
from bnnconvert.trace.dataflow import layer_facts
from bnnconvert.trace.tracer import trace
from bnnconvert.values.steering import Steering


def conv() -> nn.Module:
    return nn.Conv2d(4, 4, 3, padding=1)


class Router(nn.Module):
    """Takes one way or the other by the values of its input, as experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv())
        self.right = conv()
        self.both = conv()

    def forward(self, x: Tensor) -> dict[str, Tensor | int]:
        way = self.left if x.mean() > 0 else self.right
        return {"y": self.both(way(x).relu()), "ways": 2}


class Routed(nn.Module):
    """A router between layers that can be followed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.router = Router()
        self.after = conv()
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.router(self.stem(x))["y"]
        if x.shape[1] > 3:
            x = self.after(x)
        return self.head(x.view(x.shape[0], 4, -1).mean(2))


class Wholly(Routed):
    """Decides by values in its own code."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > -1e9 else -x)


def positive(module: Routed) -> Routed:
    """The router goes left on ordinary input."""
    nn.init.constant_(module.stem.bias, 9.0)
    return module.eval()


@pytest.mark.parametrize("kind", [Routed, Wholly])
def test_the_graph_is_right_on_both_ways_and_the_users_model_keeps_its_modules(kind: type[Routed]) -> None:
    torch.manual_seed(0)
    module = positive(kind())
    graph = trace(module, (torch.randn(2, 3, 4, 4),))
    assert graph.meta["rung"] == ("around" if kind is Routed else "whole")
    for sign in (-1.0, 1.0):
        x = torch.randn(3, 3, 4, 4)
        with torch.no_grad():
            module.stem.bias.fill_(9 * sign)
        assert bool(module.stem(x).mean() > 0) == (sign > 0)
        torch.testing.assert_close(graph(x), module(x))
    assert not any(isinstance(m, torch.fx.GraphModule) for m in module.modules())
    assert {id(p) for p in graph.parameters()} == {id(p) for p in module.parameters()}


def test_layers_inside_are_first_and_last_by_what_feeds_what() -> None:
    graph = trace(positive(Wholly()), (torch.randn(2, 3, 4, 4),))
    facts = {f.path: f for f in layer_facts(graph)}
    ends = {path: (f.is_first, f.is_last) for path, f in facts.items() if f.is_first or f.is_last}
    assert ends == {"model.stem.layer": (True, False), "model.head.layer": (False, True)}
    assert [path for path, f in facts.items() if f.obstacle] == ["model.router.right"]
    where = facts["model.router.right"].obstacle or ""
    assert "test_inside.py" in where
    assert "in `return super().forward(x if x.sum() > -1e9 else -x)`" in where


@pytest.mark.parametrize("recipe", ["xnor", "bwn", "reactnet"])
def test_a_student_with_graphs_inside_trains_and_opens_again_and_is_not_exported(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    student = convert_model("tests.trace.test_inside:wholly", recipe, input_shape=(1, 3, 8, 8))
    binary = {p.facts.path for p in student.plan.layers if p.decision != "float"}
    assert binary == {"model.router.left.0", "model.router.left.3", "model.router.both.layer", "model.after.layer"}
    assert next(r for r in student.plan.rewrites if r.name == "binarize").count == 4
    assert student.plan.predicted_bytes is None
    x = torch.randn(4, 3, 8, 8)
    again = open_run(student.run.path if student.run else None)
    torch.testing.assert_close(again.model.eval()(x), student.model.eval()(x), rtol=0, atol=0)
    student.model.train()
    student.model(x).square().sum().backward()
    for path in binary:
        grad = student.model.get_submodule(path).weight.grad
        assert grad is not None, path
        assert bool(grad.abs().sum() > 0), path

    assert any("'model' is called as it is" in note for note in student.notes)
    with pytest.raises(RefusalError, match="model runs code that no file can hold"):
        bnnconvert.export(student, tmp_path / "net.packed.safetensors")
    assert not list(tmp_path.glob("*.safetensors"))


def wholly() -> nn.Module:
    torch.manual_seed(1)
    return positive(Wholly())


def test_code_that_cannot_be_followed_stays_in_evaluation_and_its_graphs_train() -> None:
    class Strict(Router):
        def forward(self, x: Tensor) -> Any:
            if self.training:
                raise RuntimeError("needs targets")
            return super().forward(x)

    module = positive(Routed())
    module.router = Strict().eval()
    graph = trace(module, (torch.randn(2, 3, 4, 4),)).train()
    graph(torch.randn(2, 3, 4, 4))
    modes = {path: part.training for path, part in inner_graphs(graph)}
    assert modes == {"router.left": True, "router.both": True}
    assert graph.eval().get_submodule("router.left").training is False


def test_a_part_whose_attributes_the_code_reads_stays_as_it_is() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.called = conv(), conv()

        def forward(self, x: Tensor) -> Tensor:
            y = self.called(self.read(x)) * self.read.out_channels
            return y if y.sum() > 0 else -y

    graph = trace(nn.Sequential(nn.Conv2d(3, 4, 1), Reader()).eval(), (torch.randn(2, 3, 4, 4),))
    assert list(graph.meta["inner"]) == ["1.called"]
    obstacles = {f.path: f.obstacle for f in layer_facts(graph)}
    assert obstacles["1.called.layer"] is None
    assert "inside '1'" in (obstacles["1.read"] or "")


def test_a_leaf_is_left_whole_and_can_be_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(conv(), nn.ReLU(), conv()), conv(), nn.Conv2d(4, 2, 1))
    x = torch.randn(2, 3, 9, 9)
    student = bnnconvert.convert(net, "xnor", example_inputs=(x,), steering=Steering(leaves=("1",)))
    assert {p.facts.path for p in student.plan.layers if p.decision == "binary"} == {"2"}
    assert {p.facts.path for p in student.plan.layers if "--leaf" in p.reason} == {"1.0", "1.2"}
    bnnconvert.export(student, tmp_path / "net.packed.safetensors")
    actual = bnnconvert.Session(tmp_path / "net.packed.safetensors").run(x.numpy())
    torch.testing.assert_close(torch.from_numpy(actual), student.model(x).detach(), rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match=r"--leaf 7: the model has no such module; it has, for example, "):
        bnnconvert.convert(net, "xnor", example_inputs=(x,), steering=Steering(leaves=("7",)))


class Switch(nn.Module):
    """Two ways, chosen by an argument that is no tensor, and an argument that is None by default."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.other, self.last = nn.Conv2d(3, 4, 1), conv(), conv(), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor, way: str = "one", mask: Tensor | None = None) -> Tensor:
        x = self.first(x)
        x = self.one(x) if way == "one" else self.other(x)
        return self.last(x if mask is None else x * mask)


@pytest.mark.parametrize("way", ["one", "other"])
def test_an_argument_has_the_value_that_the_user_gives(way: str) -> None:
    module, x = Switch().eval(), torch.randn(2, 3, 4, 4)
    graph = trace(module, (x,), Steering(concrete={"way": way}))
    assert graph.meta["rung"] == "symbolic"
    torch.testing.assert_close(graph(x), module(x, way=way))
    assert {f.path for f in layer_facts(graph)} == {"first", way, "last"}


def test_arguments_that_are_not_given_have_their_defaults() -> None:
    module, x = Switch().eval(), torch.randn(2, 3, 4, 4)
    graph = trace(module, (x,))
    assert graph.meta["rung"] == "symbolic"
    torch.testing.assert_close(graph(x), module(x))
    with pytest.raises(UsageError, match="does not accept"):
        trace(module, (x,), Steering(concrete={"wai": "one"}))


class Normalises(nn.Module):
    """Writes into its input, which is the caller's."""

    def __init__(self, *, by_values: bool) -> None:
        super().__init__()
        self.by_values, self.first, self.one, self.last = by_values, nn.Conv2d(3, 4, 1), conv(), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.5).div_(0.25)
        if self.by_values and x.sum() > 1e9:
            return x
        return self.last(self.one(self.first(x)))


@pytest.mark.parametrize("by_values", [False, True])
def test_a_model_that_writes_into_its_input_writes_into_a_copy(by_values: bool) -> None:
    torch.manual_seed(0)
    module, x = Normalises(by_values=by_values).eval(), torch.rand(2, 3, 4, 4)
    before = x.clone()
    student = bnnconvert.convert(module, "bwn", example_inputs=(x,))
    outputs = [student.teacher(x) for _ in range(2)]
    student.model(x)
    torch.testing.assert_close(x, before, rtol=0, atol=0)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
    torch.testing.assert_close(outputs[0], module(x))
