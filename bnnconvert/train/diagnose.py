"""Which layer is to blame when a loss is no longer a number."""

import math
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from bnnconvert.errors import RefusalError
from bnnconvert.values.inputs import Example, as_tuple, run_on

_REMEDY = "lower the learning rate or set training.gradient_clip, then go on from the last good checkpoint"


def refuse_not_finite(
    student: nn.Module, x: Example, *, loss: float, step: int, teacher_logits: Tensor | None
) -> NoReturn:
    """Stop a run whose loss is not finite, naming the first layer that is to blame for this batch.

    Raises: RefusalError.
    """
    start = f"Fine-tuning stopped at step {step + 1}, loss {loss}: "
    if math.isfinite(loss):
        raise RefusalError(f"{start}another process's loss is not finite; its message names the layer.")
    if not all(bool(torch.isfinite(given).all()) for given in as_tuple(x)):
        raise RefusalError(f"{start}the batch itself holds values that are not finite; check the data.")
    if teacher_logits is not None and not bool(torch.isfinite(teacher_logits).all()):
        raise RefusalError(f"{start}the teacher's output is not finite; check the float model on this data.")
    reason = first_not_finite(student, x)
    if reason is None:
        reason = "no layer is to blame, so the loss itself overflows"
    raise RefusalError(f"{start}{reason}; {_REMEDY}.")


def refuse_bad_parameters(student: nn.Module, *, step: int) -> None:
    """Stop before parameters that are not finite reach a checkpoint.

    Raises: RefusalError naming the layer.
    """
    for name, parameter in student.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            path, _, own = name.rpartition(".")
            raise RefusalError(f"Fine-tuning stopped after step {step}: {_bad(path, own)}; {_REMEDY}.")


@torch.no_grad()
def first_not_finite(model: nn.Module, x: Example) -> str | None:
    """What is wrong with the first module, in order of execution, that has a bad parameter or makes a bad output."""
    reasons: list[str] = []

    def hook(path: str) -> Any:
        def check(module: nn.Module, _inputs: Any, output: Any) -> None:
            # A binary layer hides a NaN weight behind its sign, so parameters are looked at, too.
            bad = [n for n, p in module.named_parameters() if not bool(torch.isfinite(p).all())]
            if bad:
                reasons.append(_bad(path, bad[0]))
            elif isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                reasons.append(f"the output of layer {path!r} is not finite")

        return check

    leaves = _leaves(model)
    handles = [module.register_forward_hook(hook(path)) for path, module in leaves]
    try:
        run_on(model, x)
    finally:
        for handle in handles:
            handle.remove()
    return reasons[0] if reasons else None


def _leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules that the graph calls, or in a plain module those without children."""
    graph = getattr(model, "graph", None)
    if graph is None:
        return [(path, m) for path, m in model.named_modules() if path and not any(True for _ in m.children())]
    paths = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    return [(path, model.get_submodule(path)) for path in paths]


def _bad(path: str, parameter: str) -> str:
    return f"{parameter!r} of layer {path!r} is not finite"
