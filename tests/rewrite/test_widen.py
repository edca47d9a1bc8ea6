"""Widen: the function stays, every followed layer grows, and what cannot be followed is named and keeps its size."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

import bnnconvert
from bnnconvert.errors import UsageError
from bnnconvert.recipe import parse_recipe, recipe_text
from bnnconvert.rewrite.channel_spaces import Group, Segment, copies_of
from bnnconvert.rewrite.widen import Widen
from bnnconvert.trace.tracer import trace
from bnnconvert.values.inputs import specs_of
from bnnconvert.values.plan import Plan
from tests.networks import Functional, Residual, plain, randomise
from tests.rewrite.test_rewrites import rewritten


class Mixed(nn.Module):
    """Depthwise and grouped convolutions, a concatenation, a channel gate, PReLUs, a batch norm behind a flatten."""

    input_shape = (1, 3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0, self.act0 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.PReLU(6)
        self.depthwise, self.bn1, self.act1 = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6), nn.PReLU()
        self.grouped = nn.Conv2d(6, 8, 3, padding=1, groups=2)
        self.multiplier = nn.Conv2d(6, 12, 3, padding=1, groups=6, bias=False)
        self.down, self.up = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1)
        self.pool, self.flatten, self.bn2 = nn.MaxPool2d(4), nn.Flatten(), nn.BatchNorm1d(26 * 4)
        self.hidden, self.fc = nn.Linear(26 * 4, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act0(self.bn0(self.stem(x)))
        y = self.act1(self.bn1(self.depthwise(x))) + x
        gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(y, 1)))))
        y = torch.cat([self.grouped(y), self.multiplier(y), y * gate], 1)
        return self.fc(F.relu(self.hidden(self.bn2(self.flatten(self.pool(y))))))


NETWORKS: list[Callable[[], nn.Module]] = [Residual, Functional, plain, Mixed]


def channels(graph: GraphModule) -> dict[str, tuple[int, int]]:
    layers = {path: m for path, m in graph.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    kinds = {path: "channels" if isinstance(m, nn.Conv2d) else "features" for path, m in layers.items()}
    return {path: (getattr(m, f"in_{kinds[path]}"), getattr(m, f"out_{kinds[path]}")) for path, m in layers.items()}


def widened(module: nn.Module, factor: float = 2, *rewrites: str) -> tuple[GraphModule, Plan]:
    shape = getattr(module, "input_shape", (1, 3, 8, 8))
    return rewritten(module, f'{{ name = "widen", factor = {factor} }}', *rewrites, shape=(4, *shape[1:]))


@pytest.mark.parametrize("factor", [1.5, 2, 3])
@pytest.mark.parametrize("build", NETWORKS)
def test_the_function_stays_and_every_layer_but_the_ends_grows(build: Callable[[], nn.Module], factor: float) -> None:
    torch.manual_seed(0)
    module = randomise(build())
    graph, plan = widened(module, factor)
    (record,) = plan.rewrites
    assert record.count == 1
    x = torch.randn(5, *getattr(module, "input_shape", (1, 3, 8, 8))[1:])
    torch.testing.assert_close(graph.eval()(x), module(x), rtol=1e-4, atol=1e-5)
    before, after = channels(rewritten(module, shape=tuple(x.shape))[0]), channels(graph)
    if factor == 1.5 and build is Mixed:  # one group's three channels would become four, the other's five
        assert record.refusals == ("grouped: its 2 groups would differ in size",)
        assert after["grouped"] == (6, 12)
        return
    assert not record.refusals
    first, last = next(iter(before)), list(before)[-1]
    for path, (inputs, outputs) in before.items():
        assert after[path] == (
            inputs if path == first else round(factor * inputs),
            outputs if path == last else round(factor * outputs),
        ), path


def test_depthwise_stays_depthwise_and_groups_keep_their_number() -> None:
    graph, _ = widened(randomise(Mixed()), 2)
    assert graph.get_submodule("depthwise").groups == 12
    assert graph.get_submodule("depthwise").weight.shape == (12, 1, 3, 3)
    assert graph.get_submodule("grouped").groups == 2
    assert graph.get_submodule("grouped").weight.shape == (16, 6, 3, 3)
    assert graph.get_submodule("bn2").num_features == 26 * 4 * 2
    assert graph.get_submodule("act0").num_parameters == 12
    assert graph.get_submodule("act1").num_parameters == 1


def test_copies_stand_side_by_side_also_behind_a_flatten() -> None:
    space = (Segment(Group(2), repeat=2), Segment(Group(1, is_fixed=True)))
    copies = copies_of(space, lambda size: torch.full((size,), 2))
    assert copies.source.tolist() == [0, 1, 0, 1, 2, 3, 2, 3, 4]
    assert copies.count.tolist() == [2] * 8 + [1]


def test_a_factor_that_is_no_integer_spreads_the_copies() -> None:
    assert Widen(factor=1.5)._counts(4).tolist() == [1, 2, 1, 2]
    assert Widen(factor=2)._counts(3).tolist() == [2, 2, 2]


def test_copies_differ_in_what_reads_them_and_so_learn_apart() -> None:
    torch.manual_seed(0)
    graph, _ = widened(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(6 * 16, 2)))
    first, second = graph.get_submodule("0"), graph.get_submodule("1")
    assert torch.equal(first.weight[0::2], first.weight[1::2])
    assert not torch.equal(second.weight[:, 0::2], second.weight[:, 1::2])
    nn.functional.cross_entropy(graph(torch.randn(4, 3, 8, 8)), torch.tensor([0, 1, 0, 1])).backward()
    assert not torch.allclose(first.weight.grad[0::2], first.weight.grad[1::2])


def test_noise_brings_the_signs_of_the_copies_nearer_to_the_weight() -> None:
    def error(noise: float) -> float:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 3, padding=1), nn.Flatten(), nn.Linear(64 * 64, 2))
        nn.init.normal_(net[1].weight)
        weight = net[1].weight.detach().clone()
        graph, _ = rewritten(net, f'{{ name = "widen", factor = 2, noise = {noise} }}')
        signs = graph.get_submodule("1").weight.detach().sign()[::2].unflatten(1, (64, 2)).sum(2)
        return 1 - float((signs * weight).sum().square() / signs.square().sum() / weight.square().sum())

    assert error(0) == pytest.approx(1 - 2 / torch.pi, abs=0.01)
    assert error(0.75) < 0.29


def test_the_plan_shows_the_layers_as_they_are_now() -> None:
    _, plan = widened(Residual(), 2, '"binarize"')
    layer = plan.layer("layer1.conv1")
    assert layer is not None
    assert layer.facts.weight_shape == (8, 8, 3, 3)
    assert layer.now.weight_shape == (16, 16, 3, 3)
    assert layer.bytes == 16 * 16 * 9 // 8
    assert layer.now.macs == 4 * layer.facts.macs
    shown = next(row for row in plan.to_json()["layers"] if row["name"] == "layer1.conv1")
    assert shown["weight_shape"] == (16, 16, 3, 3)
    assert shown["float_bytes"] == 4 * 8 * 8 * 9
    assert plan.totals["float_bytes"] == sum(layer.facts.float_bytes for layer in plan.layers)


class Through(nn.Module):
    """Stem, something, and a layer on either side of it."""

    def __init__(self, middle: nn.Module, width: int = 6) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = (nn.Conv2d(i, width, 1) for i in (3, width, width, width))
        self.middle, self.fc = middle, nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(F.relu(self.stem(x)))
        return self.fc(F.adaptive_avg_pool2d(self.head(self.b(self.middle(x))), 1).flatten(1))


class Fold(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2)


@pytest.mark.parametrize(
    ("middle", "words"),
    [
        (nn.GroupNorm(2, 6), "middle: a GroupNorm may mix channels"),
        (nn.ChannelShuffle(3), "middle: a ChannelShuffle may mix channels"),
        (Fold(), "unflatten: what unflatten does to channels is not known"),
    ],
)
def test_what_cannot_be_followed_is_named_and_keeps_its_size(middle: nn.Module, words: str) -> None:
    module = Through(middle).eval()
    graph, plan = widened(module, 2)
    (record,) = plan.rewrites
    assert record.count == 1
    assert any(words.split(":")[0] in refusal and words.split(": ")[1] in refusal for refusal in record.refusals)
    found = channels(graph)
    assert (found["stem"], found["a"], found["b"], found["head"]) == ((3, 12), (12, 6), (6, 12), (12, 12))
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(graph(x), module(x), rtol=1e-4, atol=1e-5)


def test_a_module_called_twice_keeps_one_size() -> None:
    shared = nn.Conv2d(6, 6, 1)
    module = Through(nn.Identity())
    module.a = module.b = shared
    graph, plan = widened(module.eval(), 2)
    assert plan.rewrites[0].count == 1
    assert channels(graph)["a"] == (12, 12)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(graph(x), module(x), rtol=1e-4, atol=1e-5)


def test_a_shared_parameter_is_refused() -> None:
    module = Through(nn.Identity())
    module.b.weight = module.a.weight
    graph, plan = widened(module.eval(), 2)
    assert plan.rewrites[0].refusals == ("a: it shares a parameter with another module",)
    assert channels(graph)["a"] == channels(graph)["b"] == (6, 6)
    assert graph.get_submodule("b").weight is graph.get_submodule("a").weight
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(graph(x), module(x), rtol=1e-4, atol=1e-5)


def test_a_network_of_one_layer_has_nothing_to_widen() -> None:
    graph = trace(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval(), (torch.randn(2, 3, 8, 8),))
    assert list(Widen(factor=2).find(graph, Plan(recipe="test", inputs=specs_of((1, 3, 8, 8)), layers=()))) == []


def test_binary_layers_are_refused_with_the_order_to_use() -> None:
    _, plan = rewritten(Residual(), '"binarize"', '{ name = "widen", factor = 2 }')
    assert any("put 'widen' in front of 'binarize'" in refusal for refusal in plan.rewrites[1].refusals)


def test_a_factor_of_one_or_less_is_refused() -> None:
    with pytest.raises(UsageError, match="option 'factor' is 1"):
        widened(Residual(), 1)


def test_a_widened_student_trains_beside_its_narrow_teacher() -> None:
    text = recipe_text("bireal").replace('"binarize",', '{ name = "widen", factor = 1.5 },\n    "binarize",')
    student = bnnconvert.convert(
        randomise(Residual()), parse_recipe(text, where="wide.toml"), input_shape=Residual.input_shape
    )
    assert student.teacher.get_submodule("layer1.conv1").weight.shape == (8, 8, 3, 3)
    assert student.model.get_submodule("layer1.conv1").weight.shape == (12, 12, 3, 3)
    assert student.model(torch.randn(2, 3, 8, 8)).shape == (2, 5)
