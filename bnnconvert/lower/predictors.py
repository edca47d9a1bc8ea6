"""Predictors of positive outputs for float layers of a student, calibrated after training.

Per channel, positive outputs of the calibration data are counted by the predictor's sum. The limit is the largest at
which no more than the allowed share of them lies below it; that of a channel without positive outputs is beyond every
sum, so that nothing of it is computed.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from bnnconvert.channels import channel_sums
from bnnconvert.errors import RefusalError
from bnnconvert.graph import BATCH_NORMS, RELUS, is_call_of, is_called_once, module_of, only_user, set_module
from bnnconvert.layers.predicted import PredictedLayer, Predictor, folded, one_bit_copy
from bnnconvert.values.inputs import Example, run_on
from bnnconvert.values.plan import Plan
from bnnconvert.values.program import Constant, Program, Value
from bnnconvert.values.program import Node as Call


@dataclass(frozen=True)
class Site:
    """A layer, the batch norm behind it if there is one, and what that gives to a ReLU."""

    layer: nn.Conv2d | nn.Linear
    """With the batch norm folded in."""
    node: Node
    last: Node


@dataclass(frozen=True)
class Tally:
    """What a predictor did, in numbers of outputs."""

    outputs: int
    positive: int
    missed: int
    """Positive ones that were predicted not to be."""
    computed: int


def planned(student: GraphModule, plan: Plan) -> Plan:
    """The plan without predictors where the rewritten student has no place for them, and why."""
    layers = []
    for layer in plan.layers:
        if layer.predict is not None:
            why = layer.facts.obstacle or site_of(student, layer.facts.path)
            if isinstance(why, str):
                layer = replace(layer, predict=None, reason=f"{layer.reason}; no predictor, as {why}")
        layers.append(layer)
    return replace(plan, layers=tuple(layers))


def site_of(student: GraphModule, path: str) -> Site | str:
    """The place of a layer that can have a predictor, or why it can have none."""
    node = next((n for n in student.graph.nodes if n.op == "call_module" and n.target == path), None)
    layer = module_of(student, node)
    if node is None or not isinstance(layer, nn.Conv2d | nn.Linear) or not is_called_once(student, node):
        return "the student has no such layer that is called once"
    norm = only_user(node) if is_call_of(student, only_user(node), BATCH_NORMS) else None
    last = node if norm is None else norm
    if not is_call_of(student, only_user(last), RELUS):
        return "its output does not go into a ReLU and nowhere else"
    batch_norm = module_of(student, norm)
    if getattr(batch_norm, "running_mean", 0) is None:
        return "the batch norm behind it has no running statistics"
    return Site(folded(layer, batch_norm), node, last)


def calibrate(student: GraphModule, shares: Mapping[str, float], batches: Iterable[Example]) -> dict[str, Predictor]:
    """Predictors of the layers in `shares`, each missing at most that share of the positive outputs of any channel.

    Raises: RefusalError for a layer that can have none.
    """
    inputs = list(batches)
    layers = {path: _site(student, path).layer for path in shares}
    sums = dict.fromkeys(layers, torch.zeros(()))
    counts = dict.fromkeys(layers, 0)

    def add_up(path: str, x: Tensor) -> None:
        sums[path] = sums[path] + channel_sums(x.double())
        counts[path] += x.numel() // x.shape[1]

    names = {path: path for path in shares}
    _look(student, names, inputs, add_up)
    thresholds = {path: (sums[path] / counts[path]).float() for path in layers}
    copies = {path: one_bit_copy(layer, thresholds[path]) for path, layer in layers.items()}
    positive = {
        path: torch.zeros(len(layer.weight), 2 * layer.weight[0].numel() + 1, dtype=torch.int64)
        for path, layer in layers.items()
    }

    def count(path: str, x: Tensor) -> None:
        positive[path] += histogram(copies[path](x), layers[path](x) > 0, positive[path].shape[1])

    _look(student, names, inputs, count)
    return {path: Predictor(thresholds[path], limits(positive[path], share)) for path, share in shares.items()}


def histogram(sums: Tensor, positive: Tensor, values: int) -> Tensor:
    """How many positive outputs of each channel have each sum.

    Shapes: sums, positive (N, O, ...) -> (O, values), the sum in the middle being 0.
    """
    outputs = sums.shape[1]
    column = sums.long() + values // 2 + values * torch.arange(outputs).reshape(-1, *(1,) * (sums.dim() - 2))
    return torch.bincount(column[positive], minlength=outputs * values).reshape(outputs, values)


def limits(positive: Tensor, share: float) -> Tensor:
    """Per channel the largest sum below which there is at most a share of the positive outputs; 1 beyond all for none.

    Shapes: positive (O, 2 K + 1), how many outputs have the sums -K ... K -> (O,).
    """
    below = positive.cumsum(1)
    allowed = (share * below[:, -1:]).floor()
    return (below <= allowed).sum(1) - positive.shape[1] // 2


def with_predictors(student: GraphModule, predictors: Mapping[str, Predictor]) -> GraphModule:
    """A copy of the student, in evaluation mode, with predictors at these layers.

    Raises: RefusalError for a path at which there is no layer that can have one, or one of another size.
    """
    made = copy.deepcopy(student).eval()
    for path, predictor in predictors.items():
        site = _site(made, path)
        weight, groups = site.layer.weight, getattr(site.layer, "groups", 1)
        if (len(predictor.thresholds), len(predictor.limits)) != (weight.shape[1] * groups, len(weight)):
            raise RefusalError(f"{path}: the student's layer has another size; was the file exported from another run?")
        set_module(made, path, PredictedLayer(site.layer, predictor))
        (x,) = site.node.all_input_nodes
        with made.graph.inserting_before(site.node):
            sums = made.graph.call_module(f"{path}.predictor", (x,))
            mask = made.graph.call_module(f"{path}.mask", (sums,))
            y = made.graph.call_module(f"{path}.map", (x, mask))
        site.last.replace_all_uses_with(y)
        for node in dict.fromkeys((site.last, site.node)):
            made.graph.erase_node(node)
    made.graph.lint()
    made.recompile()
    return made


def predictors_of(program: Program, tensors: Mapping[str, NDArray[Any]]) -> dict[str, Predictor]:
    """The predictors of a program, by the layer's path."""
    makers = {spec.name: node for node in program.nodes for spec in node.outputs}
    found: dict[str, Predictor] = {}
    for node in program.nodes:
        if node.op.startswith("bnnconvert.masked_"):
            mask = _maker(makers, node, "mask")
            inputs = _maker(makers, _maker(makers, mask, "x"), "bits")
            if mask is not None and inputs is not None:  # as export writes it
                found[node.layer] = Predictor(_table(inputs, "thresholds", tensors), _limits_of(mask, tensors))
    return found


def tallies(made: GraphModule, paths: Sequence[str], batches: Iterable[Example]) -> dict[str, Tally]:
    """What the predictors of a student did on some data."""
    counts = {path: torch.zeros(4, dtype=torch.int64) for path in paths}

    def count(path: str, x: Tensor, mask: Tensor) -> None:
        dense = made.get_submodule(f"{path}.map").forward(x, torch.ones_like(mask))  # not a call, which would be seen
        positive = dense > 0
        parts = (torch.ones_like(mask), positive, positive & ~mask, mask)
        counts[path] += torch.stack([part.sum() for part in parts])

    _look(made, {f"{path}.map": path for path in paths}, batches, count)
    return {path: Tally(*count.tolist()) for path, count in counts.items()}


def _site(student: GraphModule, path: str) -> Site:
    site = site_of(student, path)
    if isinstance(site, str):
        raise RefusalError(f"{path}: has no place for a predictor, as {site}; was the file exported from another run?")
    return site


def _look(
    student: GraphModule, names: Mapping[str, str], batches: Iterable[Example], look: Callable[..., None]
) -> None:
    """Run a student on every batch and show what enters each of these modules, under its name."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, given: look(name, *given)

    hooks = [student.get_submodule(path).register_forward_pre_hook(hook(name)) for path, name in names.items()]
    try:
        with torch.no_grad():
            for x in batches:
                run_on(student, x)
    finally:
        for handle in hooks:
            handle.remove()


def _maker(makers: Mapping[str, Call], node: Call | None, argument: str) -> Call | None:
    value = None if node is None else node.arguments.get(argument)
    return makers.get(value.value) if isinstance(value, Value) else None


def _table(node: Call, argument: str, tensors: Mapping[str, NDArray[Any]]) -> Tensor:
    constant = node.arguments[argument]
    assert isinstance(constant, Constant)
    return torch.from_numpy(tensors[constant.tensor].copy()).reshape(-1)


def _limits_of(mask: Call, tensors: Mapping[str, NDArray[Any]]) -> Tensor:
    """Limits of thresholds on sums; a channel whose bit never flips has none, as all sums lie on one side of it."""
    at = _table(mask, "thresholds", tensors).long()
    return torch.where(_table(mask, "start", tensors), -at, at)
