"""Optimizers: one file each, one row each."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bnnconvert.binarizers.base import WeightBinarizer
from bnnconvert.errors import UsageError
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.train.optimizers.adam import Adam
from bnnconvert.train.optimizers.adamw import AdamW
from bnnconvert.train.optimizers.base import RecipeOptimizer
from bnnconvert.train.optimizers.bop import Bop
from bnnconvert.train.optimizers.extragradient import Extragradient
from bnnconvert.train.optimizers.groups import enter_stage, parameter_groups, set_learning_rate
from bnnconvert.train.optimizers.nesterov import Nesterov
from bnnconvert.train.optimizers.radam import RAdam
from bnnconvert.train.optimizers.sgd import SGD
from bnnconvert.train.optimizers.shift_adamax import ShiftAdaMax
from bnnconvert.values import recipe
from bnnconvert.values.tables import build_row, look_up, row_options

OPTIMIZERS: dict[str, type[RecipeOptimizer]] = {
    "adam": Adam,
    "adamw": AdamW,
    "radam": RAdam,
    "sgd": SGD,
    "nesterov": Nesterov,
    "bop": Bop,
    "shift-adamax": ShiftAdaMax,
    "extragradient": Extragradient,
}
FIXED = ("groups", "lr", "fused")
"""Arguments of every row that are no options."""

__all__ = [
    "OPTIMIZERS",
    "add_network",
    "check_optimizer",
    "enter_stage",
    "make_optimizer",
    "parameter_groups",
    "set_learning_rate",
]


def make_optimizer(student: nn.Module, settings: recipe.Optimizer, *, by_layer: bool = False) -> RecipeOptimizer:
    """The recipe's optimizer over the student's parameters, in one group per kind, or per binary layer.

    Raises: UsageError for an unknown optimizer or option, or one that cannot train the student's binary weights.
    """
    groups = parameter_groups(student, settings, by_layer=by_layer)
    made = _build(settings, groups, where="training.optimizer")
    layers = [(path, m) for path, m in student.named_modules() if isinstance(m, BinaryLayer)]
    _refuse_unfit(type(made), [(path, m.weight_binarizer, m.weight) for path, m in layers], where="training.optimizer")
    return made


def add_network(optimizer: RecipeOptimizer, network: nn.Module, settings: recipe.Optimizer) -> None:
    """Let the optimizer train a second network as well."""
    for group in parameter_groups(network, settings):
        optimizer.add_param_group(group)


def check_optimizer(
    settings: recipe.Optimizer, binarizers: Iterable[tuple[str, WeightBinarizer]], shape: tuple[int, ...], *, where: str
) -> None:
    """Look at a recipe's optimizer without a student; `binarizers` are those of its rules, with their places.

    Raises: UsageError as `make_optimizer` would.
    """
    # Without building one, which takes torch's compiler to be imported.
    row = look_up(OPTIMIZERS, settings.name, where=where, what="optimizer")
    row_options(row, settings, where=where, what="optimizer", fixed=FIXED)
    weight = torch.linspace(-0.9, 1, torch.Size(shape).numel()).reshape(shape)
    _refuse_unfit(row, [(place, binarizer, weight) for place, binarizer in binarizers], where=where)


def _build(settings: recipe.Optimizer, groups: list[dict[str, object]], *, where: str) -> RecipeOptimizer:
    devices = {p.device.type for group in groups for p in group["params"]}  # type: ignore[attr-defined]
    fixed = dict(zip(FIXED, (groups, settings.lr, devices <= {"cpu", "cuda"}), strict=True))
    return build_row(OPTIMIZERS, settings, where=where, what="optimizer", **fixed)


def _refuse_unfit(
    optimizer: type[RecipeOptimizer], weights: Iterable[tuple[str, WeightBinarizer, Tensor]], *, where: str
) -> None:
    for place, binarizer, weight in weights:
        reason = optimizer.obstacle(binarizer, weight)
        if reason is not None:
            raise UsageError(f"{where}: {optimizer.__name__} cannot train {place}: {reason}.")
