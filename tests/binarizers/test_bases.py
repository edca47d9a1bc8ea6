"""ABC-Net, HORQ and residual weights against the closed forms of the literature notes."""

import pytest
import torch
from torch import Tensor, nn

from bnnconvert.binarizers.abcnet import AbcInput, AbcWeight
from bnnconvert.binarizers.horq import HorqInput
from bnnconvert.binarizers.residual import ResidualWeight


def test_abc_weights_of_three_bases() -> None:
    planes = AbcWeight(bases=3).planes(torch.tensor([[-3.0, -1.0, 1.0, 3.0]]))
    assert [p.pm1.tolist() for p in planes] == [[[-1, -1, -1, 1]], [[-1, -1, 1, 1]], [[-1, 1, 1, 1]]]
    assert [p.scale.item() for p in planes if p.scale is not None] == pytest.approx([1, 1, 1], abs=1e-5)


@pytest.mark.parametrize(("bases", "value"), [(1, [-2, -2, 2, 2]), (2, [-3, 0, 0, 3])])
def test_abc_weights_of_fewer_bases(bases: int, value: list[float]) -> None:
    w = torch.tensor([[-3.0, -1.0, 1.0, 3.0]])
    assert AbcWeight(bases=bases)(w)[0].tolist() == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("scales", ["layer", "filter"])
def test_abc_scales_are_the_least_squares_ones(scales: str) -> None:
    torch.manual_seed(0)
    w = torch.randn(4, 3, 3, 3) + torch.tensor([0.0, 0.5, -1.0, 2.0]).reshape(4, 1, 1, 1)
    planes = AbcWeight(bases=3, scales=scales).planes(w)  # type: ignore[arg-type]
    groups = [slice(0, 4)] if scales == "layer" else [slice(o, o + 1) for o in range(4)]
    for group in groups:
        bases = torch.stack([p.pm1[group].flatten() for p in planes], 1)
        best = torch.linalg.lstsq(bases, w[group].flatten()[:, None]).solution[:, 0]
        found = torch.stack([p.scale[group][0] for p in planes if p.scale is not None])
        torch.testing.assert_close(found, best, rtol=1e-4, atol=1e-5)
        centred = w[group] - w[group].mean()
        assert torch.equal(planes[0].pm1[group], torch.where(centred - centred.std(correction=0) >= 0, 1.0, -1.0))


def test_abc_bases_that_coincide_do_no_harm() -> None:
    w = torch.tensor([[-1.0, 1.0, 1.0, -1.0]])
    value = AbcWeight(bases=8)(w)
    torch.testing.assert_close(value, w, rtol=1e-4, atol=1e-4)
    assert AbcWeight(bases=3)(torch.full((2, 5), 0.3)).isfinite().all()


def test_abc_weight_gradient_is_the_sum_of_the_scales() -> None:
    torch.manual_seed(0)
    w, g = torch.randn(4, 9, requires_grad=True), torch.randn(4, 9)
    binarizer = AbcWeight(bases=3, scales="filter")
    (binarizer(w) * g).sum().backward()
    total = sum(p.scale for p in binarizer.planes(w) if p.scale is not None)
    assert isinstance(total, Tensor)
    torch.testing.assert_close(w.grad, g * total[:, None])


def test_abc_inputs() -> None:
    binarizer = AbcInput(1, bases=1)
    x = torch.tensor([[0.3]])
    nn.init.zeros_(binarizer.shift)
    nn.init.ones_(binarizer.scale)
    assert binarizer(x).item() == -1
    nn.init.constant_(binarizer.shift, 0.3)
    assert binarizer(x).item() == 1


def test_abc_input_gradients() -> None:
    torch.manual_seed(0)
    binarizer = AbcInput(5, bases=3)
    with torch.no_grad():
        binarizer.shift.copy_(torch.tensor([1.0, 0.5, -0.25]))
        binarizer.scale.copy_(torch.tensor([0.5, 1.0, 2.0]))
    x, g = torch.randn(40, 5, requires_grad=True), torch.randn(40, 5)
    (binarizer(x) * g).sum().backward()
    leaf = x.detach()
    inside = torch.stack([((leaf + v >= 0) & (leaf + v <= 1)).float() for v in (1.0, 0.5, -0.25)])
    signs = torch.stack([torch.where(leaf + v >= 0.5, 1.0, -1.0) for v in (1.0, 0.5, -0.25)])
    scale = binarizer.scale.detach().reshape(3, 1, 1)
    torch.testing.assert_close(x.grad, (scale * inside).sum(0) * g)
    torch.testing.assert_close(binarizer.shift.grad, (scale * inside * g).sum((1, 2)))
    torch.testing.assert_close(binarizer.scale.grad, (signs * g).sum((1, 2)))


def test_abc_inputs_start_at_quantiles_and_fit() -> None:
    torch.manual_seed(0)
    x = torch.randn(100, 30) * 2 + 1
    binarizer = AbcInput(30, bases=3)
    binarizer.calibrate(x)
    expected = x.flatten().quantile(torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(0.5 - binarizer.shift.detach(), expected)
    error = (binarizer(x) - x).square().mean()
    with torch.no_grad():
        binarizer.scale.mul_(1.02)
    assert error < (binarizer(x) - x).square().mean()


def test_horq_residuals() -> None:
    x = torch.tensor([[1.0, -2.0, 3.0, -4.0]])
    binarizer = HorqInput(4, order=3)
    binarizer.calibrate(x)
    assert binarizer.scale.tolist() == [2.5, 1.0, 0.5]
    low, middle, high = (plane.pm1[0].tolist() for plane in binarizer.planes(x))
    assert high == [1, -1, 1, -1]
    assert middle == [-1, 1, 1, -1]
    assert torch.equal(binarizer.eval()(x), x)
    assert [2.5 * h + m + 0.5 * v for h, m, v in zip(high, middle, low, strict=True)] == x[0].tolist()


def test_horq_residual_norm_falls_as_the_notes_say() -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 30)
    norms = []
    for order in (1, 2, 3):
        binarizer = HorqInput(30, order=order)
        binarizer.calibrate(x)
        norms.append((x - binarizer.eval()(x)).square().sum())
        before = x.square().sum() if order == 1 else norms[-2]
        torch.testing.assert_close(norms[-1], before - x.numel() * binarizer.scale[-1] ** 2)


def test_horq_scales_are_a_running_mean_in_training_only() -> None:
    binarizer = HorqInput(4, order=2)
    binarizer.calibrate(torch.tensor([[1.0, -2.0, 3.0, -4.0]]))
    x = torch.tensor([[4.0, -4.0, 4.0, -4.0]], requires_grad=True)
    binarizer.eval()(x)
    assert binarizer.scale.tolist() == [2.5, 1.0]
    value = binarizer.train()(x)
    assert value[0].tolist() == [3.5, -3.5, 3.5, -3.5]
    assert binarizer.scale.tolist() == pytest.approx([2.5 + 0.1 * 1.5, 1.0 + 0.1 * 0.5])


def test_horq_gradient_is_clipped_at_one() -> None:
    x = torch.tensor([[-1.1, -1.0, 0.2, 1.0, 1.5]], requires_grad=True)
    HorqInput(5)(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0, 1, 1, 1, 0]]


def test_residual_weights() -> None:
    w, g = torch.tensor([[1.0, -2.0, 3.0, -4.0]], requires_grad=True), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    binarizer = ResidualWeight(bases=2)
    planes = binarizer.planes(w)
    assert [p.scale.tolist() for p in planes if p.scale is not None] == [[2.5], [1.0]]
    value = binarizer(w)
    (value * g).sum().backward()
    assert value[0].tolist() == [1.5, -1.5, 3.5, -3.5]
    assert (w - value).square().sum().item() == 30 - 4 * 2.5**2 - 4 * 1.0**2
    assert torch.equal(w.grad, g)
