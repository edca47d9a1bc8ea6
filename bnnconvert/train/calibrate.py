"""Start a student near its teacher: data-dependent binarizers first, then the statistics of batch norm.

Both change what the next layer sees, so binarizers are set in the order of execution, each seeing the output of
those before it, and batch norm is re-estimated at the end.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.batchnorm import _BatchNorm

from bnnconvert.binarizers.base import InputBinarizer
from bnnconvert.graph import evaluation, module_of
from bnnconvert.train.walk import Walk, together
from bnnconvert.values.inputs import Example, run_on


def prepare(student: GraphModule, batches: Iterable[Example], *, frozen: bool = False) -> None:
    """Calibrate the input binarizers on the first batch, then re-estimate batch norm on all of them.

    A batch norm that is `frozen` at the float network's statistics keeps them.

    Shapes: batches of (N, C, ...), the student's input, or a tuple of its inputs.
    """
    rest = iter(batches)
    first = next(rest)
    calibrate_inputs(student, first, frozen=frozen)
    if not frozen:
        reestimate_batch_norm(student, chain([first], rest))


@torch.no_grad()
def calibrate_inputs(student: nn.Module, x: Example, *, frozen: bool = False) -> None:
    """Let every input binarizer set its starting values from what reaches it.

    Batch norm uses the batch's statistics, unless it is `frozen` at the float network's.

    Shapes: x (N, C, ...), the student's input, or a tuple of its inputs.
    """
    done: set[InputBinarizer] = set()

    def calibrate(binarizer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(binarizer, InputBinarizer)
        if binarizer not in done and len(inputs[0]):
            done.add(binarizer)
            binarizer.calibrate(inputs[0])

    binarizers = [module for module in student.modules() if isinstance(module, InputBinarizer)]
    handles = [binarizer.register_forward_pre_hook(calibrate) for binarizer in binarizers]
    statistics = {name: buffer.clone() for name, buffer in _statistics(student)}
    try:
        with evaluation(student):
            train_mode(student, frozen=frozen)
            run_on(student, x)
    finally:
        for handle in handles:
            handle.remove()
        for name, buffer in _statistics(student):
            buffer.copy_(statistics[name])


@torch.no_grad()
def reestimate_batch_norm(student: GraphModule, batches: Iterable[Example]) -> None:
    """Replace batch norm's running statistics by their plain average over `batches`, front to back.

    Each batch norm sees what evaluation gives it, the new statistics before it included. In one pass with batch
    statistics everywhere a layer would see signs that evaluation does not give, more of them the deeper it is.

    Shapes: batches of (N, C, ...), the student's input, or a tuple of its inputs; `together` says how many are used.
    """
    if not _norms_in(student):
        return
    walk, met = Walk(student, together(batches)), set[_BatchNorm]()
    with evaluation(student):
        for node in student.graph.nodes:
            momenta = {norm: norm.momentum for norm in _norms_in(module_of(student, node))}
            for norm in momenta:
                if norm not in met:
                    norm.reset_running_stats()
                norm.momentum = None  # cumulative average
                norm.train()
            met.update(momenta)
            try:
                if momenta:
                    walk.rehearse(node)
            finally:
                for norm, momentum in momenta.items():
                    norm.momentum = momentum
                    norm.eval()
            walk.take(node)


def _norms_in(module: nn.Module | None) -> list[_BatchNorm]:
    return [] if module is None else [m for m in module.modules() if isinstance(m, _BatchNorm) and _is_norm(m)]


def set_batch_norm_momentum(student: nn.Module, momentum: float | Literal["cumulative"]) -> None:
    """Let running statistics follow the batches at this pace, or be their plain average."""
    for module in student.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = None if momentum == "cumulative" else momentum


def train_mode(student: nn.Module, *, frozen: bool) -> None:
    """Set training mode; a `frozen` batch norm takes its running statistics and leaves them alone."""
    student.train()
    if frozen:
        for norm in _norms_in(student):
            norm.eval()


def _statistics(student: nn.Module) -> Iterable[tuple[str, Tensor]]:
    for path, module in student.named_modules():
        if isinstance(module, _BatchNorm):
            yield from ((f"{path}.{name}", buffer) for name, buffer in module.named_buffers(recurse=False))


@torch.no_grad()
def fit_batch_norm(student: nn.Module, teacher: nn.Module, x: Tensor) -> int:
    """Fit scale and shift of the student's batch norms to the teacher's output at the same paths, by least squares.

    Per channel t ~ a y + b with a = cov(y, t) / var(y) and b = mean(t) - a mean(y), front to back in one pass, each
    layer seeing what those before it now give. Returns how many were fitted; both models evaluate.

    Shapes: x (N, C, ...), the input of both.
    """
    paths = set(_norms_called_once(teacher)) & set(_norms_called_once(student))
    wanted: dict[str, Tensor] = {}
    handles = [
        teacher.get_submodule(path).register_forward_hook(lambda _m, _i, y, path=path: wanted.update({path: y.clone()}))
        for path in paths
    ]
    handles += [student.get_submodule(path).register_forward_hook(_refit(wanted, path)) for path in paths]
    try:
        teacher.eval()(x)
        student.eval()(x)
    finally:
        for handle in handles:
            handle.remove()
    return len(paths)


def _refit(wanted: dict[str, Tensor], path: str) -> Any:
    def refit(norm: _BatchNorm, _inputs: Any, y: Tensor) -> Tensor | None:
        target = wanted.pop(path)
        if target.shape != y.shape or norm.weight is None:
            return None
        ours, theirs = (v.transpose(0, 1).flatten(1) for v in (y, target))
        mean, aim = ours.mean(1), theirs.mean(1)
        ours, theirs = ours - mean[:, None], theirs - aim[:, None]
        factor = (ours * theirs).sum(1) / ours.square().sum(1).clamp(min=1e-12)
        shift = aim - factor * mean
        norm.weight.mul_(factor)
        norm.bias.mul_(factor).add_(shift)
        per_channel = (-1, *(1,) * (y.dim() - 2))
        return y * factor.reshape(per_channel) + shift.reshape(per_channel)

    return refit


def _norms_called_once(model: nn.Module) -> list[str]:
    if isinstance(model, GraphModule):
        calls = Counter(str(node.target) for node in model.graph.nodes if node.op == "call_module")
        return [path for path, count in calls.items() if count == 1 and _is_norm(model.get_submodule(path))]
    return [path for path, module in model.named_modules() if _is_norm(module)]


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is not None
