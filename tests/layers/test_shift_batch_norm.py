"""Shift-based batch norm: powers of two, both modes, statistics, the rewrite, and its fold into thresholds."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.fx import Graph, GraphModule

import bnnconvert
from bnnconvert.graph import BATCH_NORMS
from bnnconvert.layers.shift_batch_norm import ShiftBatchNorm1d, ShiftBatchNorm2d, ap2
from bnnconvert.lower.deploy import deploy
from bnnconvert.recipe import parse_recipe, recipe_text
from bnnconvert.train import reestimate_batch_norm
from tests.networks import Residual, randomise
from tests.rewrite.test_rewrites import counts, rewritten
from tests.students import operators


def test_ap2_of_the_notes_and_at_its_edges() -> None:
    z = torch.tensor([0.3, -3.0, 0.7, 5.0, 6.0, 0.0, -0.0, 1.0, 1.4142135, 1.4142137, -(2.0**-100)])
    assert ap2(z).tolist() == [0.25, -4.0, 0.5, 4.0, 8.0, 0.0, -0.0, 1.0, 1.0, 2.0, -(2.0**-100)]
    z = torch.randn(1000) * 10
    torch.testing.assert_close(ap2(z), z.sign() * 2 ** z.abs().log2().round(), rtol=1e-6, atol=0)
    assert (torch.frexp(ap2(z)).mantissa.abs() == 0.5).all()


def test_ap2_passes_the_gradient() -> None:
    z, g = torch.randn(5, requires_grad=True), torch.randn(5)
    ap2(z).backward(g)
    assert z.grad is not None
    assert torch.equal(z.grad, g)


@pytest.mark.parametrize(("kind", "shape"), [(ShiftBatchNorm1d, (64, 3)), (ShiftBatchNorm2d, (8, 3, 4, 5))])
def test_training_form_is_the_formula_and_tracks_its_statistics(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    norm = kind(3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (torch.randn(shape) * 3 + 1).requires_grad_()
    y = norm(x)
    tail = (3, *(1,) * (len(shape) - 2))
    axes = [i for i in range(len(shape)) if i != 1]
    centred = x - x.mean(axes, keepdim=True)
    var = (centred * ap2(centred)).mean(axes)
    expected = centred * (ap2((var + 1e-5).rsqrt()) * ap2(norm.weight)).reshape(tail) + norm.bias.reshape(tail)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(norm.running_mean, 0.1 * x.detach().mean(axes))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * var.detach())
    ratio = var / x.var(axes, correction=0)
    assert (ratio >= 2**-0.5).all()
    assert (ratio <= 2**0.5).all()
    g = torch.randn(shape)
    grads = [torch.autograd.grad(out, [x, norm.weight, norm.bias], g, retain_graph=True) for out in (y, expected)]
    for ours, plain in zip(*grads, strict=True):
        torch.testing.assert_close(ours, plain)


def test_evaluation_form_is_an_affine_map_by_powers_of_two() -> None:
    norm = ShiftBatchNorm2d(2).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.7, -3.0]))
        norm.bias.copy_(torch.tensor([1.0, 0.0]))
        norm.running_mean.copy_(torch.tensor([2.0, -1.0]))
        norm.running_var.copy_(torch.tensor([0.05, 20.0]))  # 1 / sqrt: 4.47, so 4, and 0.22, so 1/4
    x = torch.randn(2, 2, 3, 3)
    scale, bias = torch.tensor([2.0, -1.0]), torch.tensor([-3.0, -1.0])
    assert torch.equal(norm(x), x * scale.reshape(2, 1, 1) + bias.reshape(2, 1, 1))
    assert torch.equal(norm.deployed()(x), norm(x))


def test_statistics_are_reestimated_as_a_plain_average() -> None:
    torch.manual_seed(0)
    norm, graph, batches = ShiftBatchNorm2d(3), Graph(), [torch.randn(4, 3, 5, 5) * 2 for _ in range(3)]
    graph.output(graph.call_module("0", (graph.placeholder("x"),)))
    reestimate_batch_norm(GraphModule(nn.Sequential(norm), graph), batches)
    torch.testing.assert_close(norm.running_mean, sum(x.mean((0, 2, 3)) for x in batches) / 3)


def test_batch_norms_around_binary_layers_are_replaced_and_share_their_tensors() -> None:
    module = randomise(Residual())
    graph, plan = rewritten(module, '"binarize"', '"shift-batch-norm"')
    assert counts(plan)["shift-batch-norm"] == 5
    plain = [path for path, m in graph.named_modules() if type(m) in BATCH_NORMS]
    assert plain == ["layer2.downsample.1"]
    assert torch.equal(graph.get_submodule("layer1.bn1").running_var, module.layer1.bn1.running_var)
    assert torch.equal(graph.get_submodule("layer1.bn1").weight, module.layer1.bn1.weight)


def test_a_shared_batch_norm_is_refused() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b, self.head = (nn.Conv2d(i, 4, 1) for i in (3, 4, 4, 4))
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.b(self.norm(self.a(self.stem(x))))))

    _, plan = rewritten(Shared(), '"binarize"', '"shift-batch-norm"')
    assert counts(plan)["shift-batch-norm"] == 0
    assert plan.rewrites[1].refusals == ("norm: it is called more than once",)


def test_it_folds_into_thresholds_and_is_exported_and_proven(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(8 * 64, 5),
    )
    text = recipe_text("xnor").replace('"insert-batch-norm",', '"insert-batch-norm",\n    "shift-batch-norm",')
    student = bnnconvert.convert(randomise(net), parse_recipe(text, where="mine.toml"), input_shape=(1, 3, 8, 8))
    made = operators(deploy(student.model, torch.randn(2, 3, 8, 8)))
    assert made.count("ChannelAffine") == 2  # in front of the first sign and behind the last layer; between, folded
    report = bnnconvert.export(student, tmp_path / "m.packed.safetensors")
    assert report.predicted_bytes == report.tensor_bytes
    session = bnnconvert.Session(tmp_path / "m.packed.safetensors")
    if session.isa is not None:
        assert session.executor.is_native
