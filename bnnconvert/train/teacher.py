"""The teacher: a copy of the user's float model on the student's own batches.

Frozen, it is in evaluation mode. Trained along with the student, it is a network of its own in training mode.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bnnconvert.tasks import CLASSIFICATION, Task
from bnnconvert.train.features import Features
from bnnconvert.train.layout import keep_gradient_layout, use_layout
from bnnconvert.values.inputs import Example, as_tuple


class Teacher:
    """A copy of the teacher; batch norms of a frozen one are fused into convolutions if nothing looks between them."""

    def __init__(
        self,
        model: nn.Module,
        *,
        device: torch.device,
        features: Iterable[str] = (),
        trains: bool = False,
        task: Task = CLASSIFICATION,
    ) -> None:
        model = copy.deepcopy(model).train(trains).requires_grad_(trains)
        paths = list(features)
        if trains:
            keep_gradient_layout(model)
        elif isinstance(model, GraphModule) and not paths:
            fuse_batch_norms(model)
        use_layout(model, torch.channels_last)
        self.trains, self.task = trains, task
        self.model = model.to(device)
        self.forward: Callable[..., Any] = self.model
        """The model, or what an engine has wrapped it in."""
        self.features = Features(self.model, paths)

    def __call__(self, x: Example) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs, and the features at the chosen paths."""
        with torch.set_grad_enabled(self.trains):
            logits = self.task.output(self.forward(*as_tuple(x)))
        return logits, self.features.take()


def fuse_batch_norms(model: GraphModule) -> int:
    """Fold each batch norm into the convolution before it, in place; the number of folds.

    Only where both modules are called once and nothing else reads the convolution: a shared module must stay as it is.
    """
    modules = dict(model.named_modules())
    calls = Counter(str(node.target) for node in model.graph.nodes if node.op == "call_module")
    folded = 0
    for norm in list(model.graph.nodes):
        before = norm.args[0] if norm.args else None
        if not (
            _calls(norm, modules, nn.BatchNorm2d) and isinstance(before, Node) and _calls(before, modules, nn.Conv2d)
        ):
            continue
        batch_norm = modules[str(norm.target)]
        if calls[str(norm.target)] + calls[str(before.target)] > 2 or len(before.users) > 1:
            continue
        if batch_norm.running_mean is None:
            continue
        model.set_submodule(str(before.target), fuse_conv_bn_eval(modules[str(before.target)], batch_norm))
        norm.replace_all_uses_with(before)
        model.graph.erase_node(norm)
        folded += 1
    model.recompile()
    return folded


def _calls(node: Node, modules: dict[str, nn.Module], kind: type[nn.Module]) -> bool:
    return node.op == "call_module" and type(modules.get(str(node.target))) is kind
