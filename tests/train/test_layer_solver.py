"""The layer-wise solver against closed forms, brute force and weights that are known."""

import itertools

import pytest
import torch
from torch import Tensor

from bnnconvert.binarizers.ternary import TernaryWeight
from bnnconvert.binarizers.tsq import TsqInput
from bnnconvert.train.layer_solver import Codes, Weights, auxiliary, descend, fit

TERNARY, BINARY = (-1, 0, 1), (-1, 1)


def error(patches: Tensor, u: Tensor, weights: Weights) -> Tensor:
    """Squared error of each filter."""
    return (u - weights.outputs(patches)).square().sum(dim=1)


def problem(*, groups: int = 2, filters: int = 5, n: int = 6, count: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """Patches that are not centred, as codes are, with outputs and a start that fits them badly."""
    draws = torch.Generator().manual_seed(3)
    patches = torch.randint(0, 4, (groups, count, n), generator=draws).double()
    return (
        patches,
        torch.randn(groups, count, filters, generator=draws, dtype=torch.double),
        torch.randint(0, 2, (groups, filters, n), generator=draws).double() * 2 - 1,
    )


def reached(patches: Tensor, u: Tensor, w: Tensor, choices: tuple[int, ...]) -> Weights:
    return descend(patches.mT @ patches, u.mT @ patches, w, choices=choices)


@pytest.mark.parametrize(
    ("v", "y", "penalty", "z"),
    [
        (0.5, 1.0, 1.0, 0.75),  # inside: (l v + y) / (1 + l)
        (-1.0, 0.0, 1.0, -1.0),  # below, where the code is right for nothing
        (-1.0, 2.0, 3.0, -1.0),  # below, and not worth the way
        (-1.0, 2.0, 0.5, 1.0),  # below, and worth it
        (5.0, 2.0, 1.0, 5.0),  # above, where the code is right for nothing
        (5.0, 1.0, 0.01, 1.05 / 1.01),  # above, and worth it
        (0.5, 1.0, 1e9, 0.5),  # in the end z is v
    ],
)
def test_the_auxiliary_of_a_scalar(v: float, y: float, penalty: float, z: float) -> None:
    found = auxiliary(torch.tensor([v]), torch.tensor([y]), penalty, low=0.0, high=2.0).item()

    def cost(z: float) -> float:
        return (y - min(max(z, 0.0), 2.0)) ** 2 + penalty * (z - v) ** 2

    assert found == pytest.approx(z, abs=1e-6)
    assert cost(found) <= min(cost(-6 + i / 1000) for i in range(12_001)) + 1e-6


@pytest.mark.parametrize("penalty", [0.1, 1.0, 7.0])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.95), (-1.0, 1.0)])
def test_the_auxiliary_is_the_best_of_all(penalty: float, low: float, high: float) -> None:
    torch.manual_seed(0)
    v, y = torch.randn(50, dtype=torch.double) * 2, torch.empty(50, dtype=torch.double).uniform_(low, high)
    grid = torch.linspace(-8, 8, 20_001, dtype=torch.double)[:, None]

    def cost(z: Tensor) -> Tensor:
        return (y - z.clamp(low, high)).square() + penalty * (z - v).square()

    found = cost(auxiliary(v, y, penalty, low=low, high=high))
    assert (found <= cost(grid).amin(0) + 1e-12).all()


@pytest.mark.parametrize("choices", [TERNARY, BINARY], ids=["ternary", "binary"])
def test_the_descent_ends_where_no_other_code_is_better_and_its_scale_is_that_of_least_squares(
    choices: tuple[int, ...],
) -> None:
    patches, u, w = problem()
    found = reached(patches, u, w, choices)
    assert set(found.w.unique().tolist()) <= set(choices)
    assert (found.a >= 0).all()
    least = error(patches, u, found)
    for g, o in itertools.product(range(2), range(5)):
        alone = (patches[g] @ found.w[g, o])[:, None]
        best = torch.linalg.lstsq(alone, u[g, :, o, None]).solution.item()
        assert found.a[g, o].item() == pytest.approx(best, rel=1e-9)
        for j, choice in itertools.product(range(6), choices):
            other = found.w[g, o].clone()
            other[j] = choice
            seen = patches[g] @ other
            scale = (seen @ u[g, :, o]) / (seen @ seen).clamp(min=1e-12)
            assert least[g, o] <= (u[g, :, o] - scale * seen).square().sum() * (1 + 1e-8)


@pytest.mark.parametrize("choices", [TERNARY, BINARY], ids=["ternary", "binary"])
def test_no_sweep_makes_the_error_larger(choices: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    patches, u, w = problem(n=12)
    errors = []
    for sweeps in range(6):
        monkeypatch.setattr("bnnconvert.train.layer_solver.SWEEPS", sweeps)
        errors.append(error(patches, u, reached(patches, u, w, choices)))
    for before, after in itertools.pairwise(errors):
        assert (after <= before * (1 + 1e-8)).all()
    assert (errors[-1] < errors[0]).any()


def test_uncorrelated_patches_give_the_l2_optimal_ternary_weights() -> None:
    # |u - a X w|^2 is then |W - a w|^2 up to a constant, of which OTWA is the best; the descent starts from elsewhere.
    w = torch.tensor([[[0.9, -0.5, 0.1], [0.4, 0.4, -0.4]]], dtype=torch.double)
    found = reached(torch.eye(3, dtype=torch.double)[None], w.mT, torch.ones_like(w), TERNARY)
    torch.testing.assert_close(found.values, TernaryWeight()(w[0])[None])
    assert found.w[0, 0].tolist() == [1, -1, 0]
    assert found.a[0].tolist() == pytest.approx([0.7, 0.4])


@pytest.mark.parametrize("choices", [TERNARY, BINARY], ids=["ternary", "binary"])
@pytest.mark.parametrize("with_codes", [False, True])
def test_planted_weights_are_found(choices: tuple[int, ...], with_codes: bool) -> None:
    draws = torch.Generator().manual_seed(0)
    patches = (torch.randint(-5, 4, (1, 3000, 18), generator=draws).clamp(min=0) * 0.65).float()  # sparse, as codes are
    planted = torch.tensor(choices)[torch.randint(len(choices), (1, 8, 18), generator=draws)].float()
    scale = torch.empty(1, 8).uniform_(0.05, 0.3, generator=draws)
    u = Weights(planted, scale).outputs(patches)
    codes = None
    if with_codes:  # as batch norm brings them there, of either sign
        s = u.std(dim=(0, 1)).reciprocal() * torch.tensor([1.0, -1.0]).repeat(4)
        quantize = TsqInput(8)
        codes = Codes(s, -u.mean(dim=(0, 1)) * s, quantize, 0.0, 3 * quantize.step())
    start = planted.clone()
    start[:, :, ::6] = 1.0
    found = fit(patches, u, Weights(start, scale * 2), choices=choices, codes=codes)
    assert torch.equal(found.weights.w, planted)
    torch.testing.assert_close(found.weights.a, scale, rtol=1e-3 if with_codes else 1e-5, atol=0)
    assert found.shares[1] < 1e-3 < found.shares[0]


def test_filters_that_get_no_better_stay_as_they_are() -> None:
    patches, u, w = (part.float() for part in problem())
    start = reached(patches.double(), u.double(), w.double(), TERNARY)
    start = Weights(start.w.float(), start.a.float())
    found = fit(patches, u, start, choices=TERNARY, codes=None)
    assert torch.equal(found.weights.w, start.w)
    blind = Codes(torch.zeros(10), torch.full((10,), 0.7), TsqInput(5), 0.0, 1.9)  # batch norm may have a scale of 0
    again = fit(patches, u, start, choices=TERNARY, codes=blind)
    assert torch.equal(again.weights.values, start.values)
    assert again.shares == (0, 0)


@pytest.mark.parametrize("choices", [TERNARY, BINARY], ids=["ternary", "binary"])
def test_inputs_that_are_always_zero_do_no_harm(choices: tuple[int, ...]) -> None:
    patches, u, w = problem(n=4)
    patches[0, :, 1], patches[1] = 0, 0
    found = reached(patches, u, w, choices)
    assert found.values.isfinite().all()
    assert (found.a[1] == 0).all()
    assert (error(patches, u, found)[0] < u[0].square().sum(0)).all()
