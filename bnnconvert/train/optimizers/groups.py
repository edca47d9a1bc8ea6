"""Which parameters decay, and at which rate each layer learns.

Decay pulls a binary weight towards its decision boundary, and a norm, a bias or a learned threshold towards a
value that means nothing, so each has its own group.

With `glorot`, the update of a binary weight is multiplied by 1 / sqrt(1.5 / (fan_in + fan_out)), as BinaryConnect and
BNN do after Adam, which would not notice a scaled gradient. That is a learning rate per layer, hence a group each.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from torch import nn

from bnnconvert.binarizers.base import InputBinarizer, WeightBinarizer
from bnnconvert.estimators.base import Estimator
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.train.schedule import Span
from bnnconvert.values import recipe

Kind = Literal["binary", "float", "undecayed"]


def parameter_groups(student: nn.Module, settings: recipe.Optimizer, *, by_layer: bool = False) -> list[dict[str, Any]]:
    """The student's trainable parameters as optimizer groups, each with its `kind` and weight decay.

    Latent weights have a group for each layer, with the layer's `path`, if `by_layer` or the settings ask for it.
    """
    decay = _decay(settings, settings.weight_decay, binary=True)
    by_kind: dict[tuple[Kind, str], list[nn.Parameter]] = {(kind, ""): [] for kind in decay}
    for kind, path, parameter in _kinds(student):
        own = kind == "binary" and (by_layer or settings.glorot)
        by_kind.setdefault((kind, path if own else ""), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": decay[kind],
            "kind": kind,
            "binary": kind == "binary",
            "path": path,
            "rate": glorot_rate(parameters[0]) if path and settings.glorot else 1.0,
        }
        for (kind, path), parameters in by_kind.items()
        if parameters
    ]


def glorot_rate(weight: nn.Parameter) -> float:
    """1 / sqrt(1.5 / (fan_in + fan_out)), the inverse of the bound from which such a weight would start.

    Shapes: weight (O, I / groups, ...).
    """
    taps = weight[0, 0].numel()
    return math.sqrt((weight.shape[1] + weight.shape[0]) * taps / 1.5)


def enter_stage(optimizer: Any, settings: recipe.Optimizer, span: Span) -> None:
    """Decay and rates as the stage wants them; latent weights that are not binary yet are weights like any other."""
    stage = span.stage
    plain = settings.weight_decay if stage.weight_decay is None else stage.weight_decay
    binary = stage.weights is True
    decay = _decay(settings, plain, binary=binary)
    for group in optimizer.param_groups:
        group["weight_decay"] = decay[group["kind"]]
        group["binary"] = binary and group["kind"] == "binary"


def set_learning_rate(optimizer: Any, rate: float, factors: Mapping[str, float] | None = None) -> None:
    """Learning rate of the next step; a layer's own rate counts while its weights are binary.

    `factors` multiplies the rate of latent weights that have a group of their own, by the layer's path.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * (group["rate"] if group["binary"] else 1.0) * (factors or {}).get(group["path"], 1.0)


def _decay(settings: recipe.Optimizer, plain: float, *, binary: bool) -> dict[Kind, float]:
    return {"binary": settings.binary_weight_decay if binary else plain, "float": plain, "undecayed": 0.0}


def _kinds(student: nn.Module) -> Iterator[tuple[Kind, str, nn.Parameter]]:
    """Each trainable parameter once, with its kind and, for a latent weight, its layer's path."""
    seen: set[nn.Parameter] = set()
    method = (WeightBinarizer, InputBinarizer, Estimator)
    of_method = {p for m in student.modules() if isinstance(m, method) for p in m.parameters()}
    latent = {m.weight: path for path, m in student.named_modules() if isinstance(m, BinaryLayer)}
    for parameter in student.parameters():
        if parameter in seen or not parameter.requires_grad:
            continue
        seen.add(parameter)
        if parameter in latent:
            yield "binary", latent[parameter], parameter
        # Norms, biases, slopes and scales are vectors, whatever axes of length one they carry.
        elif parameter in of_method or parameter.numel() == max(parameter.shape, default=1):
            yield "undecayed", "", parameter
        else:
            yield "float", "", parameter
