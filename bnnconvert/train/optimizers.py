"""Optimizers: one row each; and which parameters decay.

Decay pulls a binary weight towards its decision boundary, and a norm, a bias or a learned threshold towards a
value that means nothing, so each has its own group.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from bnnconvert.binarizers.base import InputBinarizer, WeightBinarizer
from bnnconvert.estimators.base import Estimator
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.train.schedule import Span
from bnnconvert.values import recipe
from bnnconvert.values.tables import look_up

Kind = Literal["binary", "float", "undecayed"]
Groups = list[dict[str, Any]]


def _adam(groups: Groups, settings: recipe.Optimizer, fused: bool) -> Optimizer:
    return torch.optim.Adam(groups, lr=settings.lr, betas=settings.betas, fused=fused)


def _adamw(groups: Groups, settings: recipe.Optimizer, fused: bool) -> Optimizer:
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=fused)


def _radam(groups: Groups, settings: recipe.Optimizer, fused: bool) -> Optimizer:
    return torch.optim.RAdam(groups, lr=settings.lr, betas=settings.betas)


def _sgd(groups: Groups, settings: recipe.Optimizer, fused: bool) -> Optimizer:
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, fused=fused)


def _nesterov(groups: Groups, settings: recipe.Optimizer, fused: bool) -> Optimizer:
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=True, fused=fused)


OPTIMIZERS: dict[str, Callable[[Groups, recipe.Optimizer, bool], Optimizer]] = {
    "adam": _adam,
    "adamw": _adamw,
    "radam": _radam,
    "sgd": _sgd,
    "nesterov": _nesterov,
}


def make_optimizer(student: nn.Module, settings: recipe.Optimizer) -> Optimizer:
    """The recipe's optimizer over the student's parameters, in one group per kind.

    Raises: UsageError for an unknown optimizer.
    """
    make = look_up(OPTIMIZERS, settings.name, where="training.optimizer", what="optimizer")
    groups = parameter_groups(student, settings)
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    return make(groups, settings, devices <= {"cpu", "cuda"})


def parameter_groups(student: nn.Module, settings: recipe.Optimizer) -> Groups:
    """The student's trainable parameters as optimizer groups, each with its `kind` and weight decay."""
    decay = {"binary": settings.binary_weight_decay, "float": settings.weight_decay, "undecayed": 0.0}
    by_kind: dict[str, list[nn.Parameter]] = {kind: [] for kind in decay}
    for kind, parameter in _kinds(student):
        by_kind[kind].append(parameter)
    return [{"params": by_kind[kind], "weight_decay": decay[kind], "kind": kind} for kind in decay if by_kind[kind]]


def set_weight_decay(optimizer: Optimizer, settings: recipe.Optimizer, span: Span) -> None:
    """Weight decay of each group as the stage wants it; latent weights that are not binary yet decay like any other."""
    stage = span.stage
    plain = settings.weight_decay if stage.weight_decay is None else stage.weight_decay
    binary = settings.binary_weight_decay if stage.weights else plain
    decay = {"binary": binary, "float": plain, "undecayed": 0.0}
    for group in optimizer.param_groups:
        group["weight_decay"] = decay[group["kind"]]


def _kinds(student: nn.Module) -> Iterator[tuple[Kind, nn.Parameter]]:
    seen: set[nn.Parameter] = set()
    method = (WeightBinarizer, InputBinarizer, Estimator)
    of_method = {p for m in student.modules() if isinstance(m, method) for p in m.parameters()}
    latent = {m.weight for m in student.modules() if isinstance(m, BinaryLayer)}
    for parameter in student.parameters():
        if parameter in seen or not parameter.requires_grad:
            continue
        seen.add(parameter)
        if parameter in latent:
            yield "binary", parameter
        # Norms, biases, slopes and scales are vectors, whatever axes of length one they carry.
        elif parameter in of_method or parameter.numel() == max(parameter.shape, default=1):
            yield "undecayed", parameter
        else:
            yield "float", parameter
