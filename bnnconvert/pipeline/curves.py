"""What a recipe's surrogate gradients look like over the run."""

from collections.abc import Iterator

import torch
from torch import nn

from bnnconvert.binarizers import EXAMPLE_SHAPE, build_input_binarizer, build_weight_binarizer
from bnnconvert.errors import UsageError
from bnnconvert.estimators import ESTIMATORS
from bnnconvert.estimators.base import Estimator
from bnnconvert.values.curves import Curves, Moment
from bnnconvert.values.recipe import Recipe

MOMENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
REACH, HALF = 2.0, 800
"""The curves go from -REACH to REACH, with HALF points on either side of 0."""
NAMES = {row: name for name, row in ESTIMATORS.items()}


def recipe_curves(recipe: Recipe) -> list[Curves]:
    """Forward and gradient of every estimator that the recipe uses, operands with the same one together.

    Raises: UsageError for an unknown name or option, or where the recipe has no estimator.
    """
    users: dict[tuple[str, tuple[Moment, ...]], list[str]] = {}
    x = REACH * (torch.arange(-HALF, HALF + 1) / HALF) ** 3  # densest around 0, where a late tanh has all its slope
    forward: tuple[float, ...] = ()
    for operand, estimator in _estimators(recipe):
        forward = tuple(estimator(x).tolist())
        found = users.setdefault((NAMES[type(estimator)], _moments(estimator, x)), [])
        found += [operand] if operand not in found else []
    if not users:
        raise UsageError(f"recipe {recipe.name!r}: no layer of it has a surrogate gradient, so there is none to plot.")
    grid = tuple(x.tolist())
    return [
        Curves(f"{name}: {', '.join(operands)}", grid, forward, moments) for (name, moments), operands in users.items()
    ]


def _estimators(recipe: Recipe) -> Iterator[tuple[str, Estimator]]:
    """Each estimator with the operand and the binarizer that it is of."""
    for number, rule in enumerate(recipe.layers):
        where = f"recipe {recipe.name!r}, layers[{number}]"
        if rule.weights is not None:
            made: nn.Module = build_weight_binarizer(rule.weights, EXAMPLE_SHAPE, where=f"{where}.weights")
            yield from ((f"weights ({rule.weights.name})", e) for e in _within(made))
        if rule.inputs is not None:
            made = build_input_binarizer(rule.inputs, 1, where=f"{where}.inputs")
            yield from ((f"inputs ({rule.inputs.name})", e) for e in _within(made))


def _within(binarizer: nn.Module) -> list[Estimator]:
    """Estimators of the table that a binarizer holds; one that learns its own tells what it starts as."""
    held = [m for m in binarizer.modules() if isinstance(m, Estimator) and type(m) in NAMES]
    own = getattr(binarizer, "estimator", None)
    return held or ([own] if isinstance(own, Estimator) else [])


def _moments(estimator: Estimator, x: torch.Tensor) -> tuple[Moment, ...]:
    """The estimator at each moment, or at the first one if nothing changes."""
    made = []
    for progress in MOMENTS:
        estimator.advance(progress)
        gradient = estimator.gradient(x, torch.ones_like(x)).double()
        integral = torch.cumulative_trapezoid(gradient, x.double())
        integral = torch.cat([integral.new_zeros(1), integral])
        surrogate = integral - integral[HALF]
        made.append(Moment(progress, tuple(surrogate.tolist()), tuple(gradient.tolist())))
    return tuple(made) if any(m.gradient != made[0].gradient for m in made) else (made[0],)
