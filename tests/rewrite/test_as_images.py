"""Sequences and tokens as images: the same function, the same network as one over images, and packed like it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import bnnconvert
from bnnconvert.graph import module_of
from bnnconvert.layers.axes import View
from bnnconvert.layers.conv2d import BinaryConv2d
from bnnconvert.layers.phases import Transposed
from tests.networks import Transformer, randomise, sequence


def views(graph: GraphModule) -> list[str]:
    found = [(node, module_of(graph, node)) for node in graph.graph.nodes]
    return [type(module).__name__ for _, module in found if isinstance(module, View)]


@pytest.mark.parametrize("recipe", ["xnor", "reactnet", "bnn", "dorefa", "bwn"])
def test_a_network_along_one_axis_becomes_what_it_becomes_over_images(recipe: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 2, 24)
    line, image = randomise(sequence(1)), randomise(sequence(2))
    weights = {k: v.unsqueeze(-1) if v.dim() == 3 else v for k, v in line.state_dict().items()}
    image.load_state_dict(weights)
    one = bnnconvert.convert(line, recipe=recipe, example_inputs=(x,))
    two = bnnconvert.convert(image, recipe=recipe, example_inputs=(x[..., None],))
    torch.testing.assert_close(one.model(x), two.model(x[..., None]), rtol=0, atol=0)
    assert views(one.model) == ["ToImage", "FromImage"]  # at the ends, and nothing between
    first, *others = one.plan.rewrites
    assert first.name == "as-images"
    assert [(r.name, r.count) for r in others] == [(r.name, r.count) for r in two.plan.rewrites]
    assert [(p.facts.path, p.decision, p.facts.macs) for p in one.plan.layers] == [
        (p.facts.path, p.decision, p.facts.macs) for p in two.plan.layers
    ]


@pytest.mark.parametrize("recipe", ["bwn", "xnor", "reactnet"])
def test_a_transformer_s_products_become_binary_and_are_packed(recipe: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Transformer().eval(), torch.randn(4, 3, 8, 8)
    student = bnnconvert.convert(net, recipe=recipe, example_inputs=(x,))
    decisions = {p.facts.path: p.decision for p in student.plan.layers}
    kept = {path for path, decision in decisions.items() if decision == "float"}
    assert kept == {"patches", "head"}
    assert student.plan.layer("block.fc1").facts.macs == 16 * 16 * 32
    assert student.plan.layer("mix").facts.macs == 16 * 16 * 16
    binary = [m for m in student.model.modules() if isinstance(m, BinaryConv2d)]
    assert len(binary) == len(decisions) - len(kept) == 5
    student.model.train()
    student.model(x).square().sum().backward()
    assert all(layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0 for layer in binary)
    student.model.eval()
    artifact = tmp_path / "net.packed.safetensors"
    bnnconvert.export(student, artifact)
    for count in (4, 1):
        expected = student.model(x[:count]).detach()
        torch.testing.assert_close(
            torch.from_numpy(bnnconvert.Session(artifact).run(x[:count].numpy())), expected, rtol=1e-4, atol=1e-5
        )


class Windows(nn.Module):
    """Tokens in four windows of each image, as shifted-window transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        x = self.first(x).view(n, 2, 2, 2, 2, 6).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 6)
        return self.last(self.inner(x).view(n, 16, 6).mean(1))


def test_windows_of_a_sample_are_packed_and_compared_as_its_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Windows().eval(), torch.randn(4, 4, 4, 6)
    student = bnnconvert.convert(net, recipe="xnor", example_inputs=(x,))
    assert student.plan.layer("inner").decision == "binary"
    artifact = tmp_path / "net.packed.safetensors"
    bnnconvert.export(student, artifact)
    y = torch.from_numpy(bnnconvert.Session(artifact).run(x.numpy()))
    torch.testing.assert_close(y, student.model(x).detach(), rtol=1e-4, atol=1e-5)
    report = bnnconvert.verify(artifact, against=student, samples=10)
    assert report.samples == 10
    assert report.unexplained_samples == 0


@pytest.mark.parametrize("recipe", ["bwn", "xnor"])
@pytest.mark.parametrize("between", [(), (3,), (3, 2), (2, 3, 2), (2, 1, 3, 2), (1, 2, 2, 1, 3)], ids=str)
def test_a_linear_layer_may_have_any_axes_between_samples_and_features(
    between: tuple[int, ...], recipe: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 20), nn.GELU(), nn.Linear(20, 12), nn.Linear(12, 5)).eval()
    x = torch.randn(3, *between, 4)
    student = bnnconvert.convert(net, recipe, example_inputs=(x,))
    assert [p.decision == "float" for p in student.plan.layers] == [True, False, True]
    assert student.plan.layers[1].facts.macs == 20 * 12 * math.prod(between)
    expected = student.model.eval()(x).detach()
    assert expected.shape == (3, *between, 5)
    bnnconvert.export(student, tmp_path / "net.packed.safetensors")
    actual = bnnconvert.Session(tmp_path / "net.packed.safetensors").run(x.numpy())
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_between_two_layers_over_tokens_an_activation_works_on_the_image() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6), nn.Linear(6, 2)).eval()
    student = bnnconvert.convert(net, recipe="bwn", example_inputs=(torch.randn(4, 3, 4),))
    assert views(student.model) == ["ToImage", "FromImage"]
    # PReLU of tokens has a slope per token, which no channel of an image is.
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 8), nn.PReLU(3), nn.Linear(8, 6), nn.Linear(6, 2)).eval()
    student = bnnconvert.convert(net, recipe="bwn", example_inputs=(torch.randn(4, 3, 4),))
    assert views(student.model) == ["ToImage", "FromImage"] * 2


class Twice(nn.Module):
    """A batch norm that is called for two layers of another length each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = (nn.Conv1d(4, 4, 3) for _ in range(3))
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.two(self.norm(self.one(self.stem(x))))).mean(2))


def test_a_shared_batch_norm_stays_as_it_is() -> None:
    torch.manual_seed(0)
    net, x = randomise(Twice()), torch.randn(4, 4, 12)
    student = bnnconvert.convert(net, recipe="bwn", example_inputs=(x,))
    assert isinstance(student.model.get_submodule("norm"), nn.BatchNorm1d)
    kinds = {p.facts.path: p.facts.kind for p in student.plan.layers}
    assert kinds == {"stem": "conv1d", "one": "conv1d", "two": "conv1d", "head": "linear"}
    assert views(student.model) == ["ToImage", "FromImage"] * 2


VOLUMES = {
    "plain": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": (3, 3, 1), "stride": (2, 1, 1), "padding": (1, 1, 0)},
    "dilated": {"kernel_size": (2, 3, 3), "dilation": (2, 1, 1), "padding": (2, 1, 1)},
    "frames alone": {"kernel_size": (3, 1, 1), "padding": (1, 0, 0), "bias": False},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 2},
}
TRANSPOSED = {
    "kernel as stride": {"kernel_size": 2, "stride": 2},
    "padded": {"kernel_size": 4, "stride": 2, "padding": 1},
    "output padded": {"kernel_size": 4, "stride": 2, "padding": 1, "output_padding": 1},
    "grouped": {"kernel_size": 2, "stride": 2, "groups": 2},
    "wide": {"kernel_size": (3, 6), "stride": (1, 3), "padding": (1, 2), "bias": False},
}
LAYERS = {
    **{name: nn.Conv3d(4, 6, **settings) for name, settings in VOLUMES.items()},
    **{name: nn.ConvTranspose2d(4, 6, **settings) for name, settings in TRANSPOSED.items()},
    "transposed sequence": nn.ConvTranspose1d(4, 6, 6, 3, padding=2, output_padding=1),
    "transposed volume": nn.ConvTranspose3d(4, 6, (2, 4, 3), (2, 2, 1), padding=(0, 1, 1), bias=False),
}
ENDS = {
    1: (nn.Conv1d, nn.BatchNorm1d),
    2: (nn.Conv2d, nn.BatchNorm2d),
    3: (nn.Conv3d, nn.BatchNorm3d),
}


@pytest.mark.parametrize("recipe", ["bwn", "xnor", "dorefa"])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_volumes_and_transposed_convolutions_are_convolutions_over_images(
    layer: nn.Conv3d | Transposed, recipe: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    axes = len(layer.kernel_size)
    kind, norm = ENDS[axes]
    net = nn.Sequential(kind(2, 4, 1), norm(4), nn.ReLU(), layer, norm(6), nn.ReLU(), kind(6, 3, 1)).eval()
    x = torch.randn(2, 2, *(5, 6, 7)[-axes:])
    student = bnnconvert.convert(net, recipe=recipe, example_inputs=(x,))  # the runner compares the functions
    assert {p.facts.path: p.decision for p in student.plan.layers if p.decision != "float"}.keys() == {"3"}
    found = student.plan.layer("3")
    assert found is not None
    assert found.now.macs == _products(layer, x)
    student.model.train()(x).square().sum().backward()
    assert bool(student.model.get_submodule("3").weight.grad.abs().sum() > 0)
    student.model.eval()
    bnnconvert.export(student, tmp_path / "net.packed.safetensors")
    actual = torch.from_numpy(bnnconvert.Session(tmp_path / "net.packed.safetensors").run(x.numpy()))
    torch.testing.assert_close(actual, student.model(x).detach(), rtol=1e-4, atol=1e-5)


def _products(layer: nn.Conv3d | Transposed, x: Tensor) -> int:
    """Products of a layer on an input of these positions, counted by ones."""
    if isinstance(layer, Transposed):
        return layer.weight.numel() * x.shape[2:].numel()
    with torch.no_grad():
        return layer.weight.numel() * layer(torch.zeros(1, 4, *x.shape[2:])).shape[2:].numel()


class Masks(nn.Module):
    """A mask for each region that code has found, of which there may be none."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.stem, self.least = nn.Conv2d(3, 8, 3, padding=1), least
        self.head = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 8, 2, 2))
        self.last = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.last(self.head(y[y.mean((1, 2, 3)) > self.least]))


@pytest.mark.parametrize("least", [-1e9, 1e9])
def test_layers_that_see_no_sample_are_binary_all_the_same(least: float) -> None:
    torch.manual_seed(0)
    student = bnnconvert.convert(Masks(least).eval(), recipe="xnor", input_shape=(1, 3, 8, 8))
    decisions = {p.facts.path.removeprefix("model."): p.decision for p in student.plan.layers}
    assert decisions["head.2"] == "binary"
    assert student.model.eval()(torch.randn(5, 3, 8, 8)).shape == (5 if least < 0 else 0, 1, 16, 16)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"kernel_size": 3, "stride": 2, "dilation": 2}, "its dilation is (2, 2)"),
        (
            {"kernel_size": 3, "stride": 2, "output_padding": 1},
            "its output is padded by (1, 1), beyond",
        ),
        ({"kernel_size": (3, 1), "stride": 2}, "its kernel (3, 1) is smaller than its stride (2, 2)"),
    ],
)
def test_transposed_convolutions_that_are_no_convolutions_are_refused_by_their_sizes(
    settings: dict[str, Any], reason: str
) -> None:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.ConvTranspose2d(4, 4, **settings), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1)
    )
    layer = bnnconvert.convert(net, recipe="bwn", input_shape=(1, 2, 6, 6)).plan.layer("1")
    assert layer is not None
    assert layer.reason.startswith(reason)


UNEVEN = {
    "output padded": nn.ConvTranspose2d(4, 6, 3, 2, padding=1, output_padding=1),
    "not padded": nn.ConvTranspose2d(4, 6, (5, 3), (2, 2), bias=False),
    "one axis": nn.ConvTranspose2d(4, 6, (3, 4), (1, 3), padding=(1, 2)),
    "wide stride": nn.ConvTranspose2d(4, 6, 7, 4, padding=2, output_padding=1),
    "grouped": nn.ConvTranspose2d(4, 6, 3, 2, padding=1, groups=2),
    "sequence": nn.ConvTranspose1d(4, 6, 3, 2, padding=1),
    "volume": nn.ConvTranspose3d(4, 6, 3, 2, padding=1, output_padding=1),
}


@pytest.mark.parametrize("recipe", ["auto", "bwn", "xnor"])
@pytest.mark.parametrize("layer", UNEVEN.values(), ids=UNEVEN)
def test_transposed_convolutions_of_uneven_phases_are_a_convolution_for_each_size(
    layer: Transposed, recipe: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    kind, norm = ENDS[len(layer.kernel_size)]
    net = nn.Sequential(kind(2, 4, 1), norm(4), nn.ReLU(), layer, norm(6), nn.ReLU(), kind(6, 3, 1)).eval()
    x = torch.randn(2, 2, *(5, 6, 7)[-len(layer.kernel_size) :])
    student = bnnconvert.convert(net, recipe=recipe, example_inputs=(x,))
    torch.testing.assert_close(student.teacher(x), net(x))
    binary = [p for p in student.plan.layers if p.decision != "float"]
    assert all(p.facts.path.startswith("3.taps_") for p in binary)
    uneven = sum(bool(taps % step) for taps, step in zip(layer.kernel_size, layer.stride, strict=True))
    assert len(binary) == 2**uneven
    # its taps, each once; a convolution of several rows sees more positions at the ends than are looked at
    assert sum(torch.Size(p.facts.weight_shape).numel() for p in binary) == layer.weight.numel()
    student.model.train()(x).square().sum().backward()
    assert all(bool(student.model.get_submodule(p.facts.path).weight.grad.abs().sum() > 0) for p in binary)
    student.model.eval()
    bnnconvert.export(student, tmp_path / "net.packed.safetensors")
    actual = torch.from_numpy(bnnconvert.Session(tmp_path / "net.packed.safetensors").run(x.numpy()))
    torch.testing.assert_close(actual, student.model(x).detach(), rtol=1e-4, atol=1e-5)
