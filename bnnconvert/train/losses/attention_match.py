"""Match attention maps: where in the image the energy is, whatever channel carries it.

    A = mean_c f_c^2        L = mean over paths of  mean_n || A_S / ||A_S|| - A_T / ||A_T|| ||^2

Zero where the student equals the teacher, and unchanged when a feature map is scaled. Without `at`, the maps are those
behind each activation that comes after a binary layer and that is as large in the teacher.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

from bnnconvert.errors import UsageError
from bnnconvert.graph import ACTIVATIONS, is_call_of, shape_of
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.train.losses.base import Loss, Outputs
from bnnconvert.train.losses.pairing import called_once, check_shapes, paired_paths


class AttentionMatch(Loss):
    """Squared distance of normalised channel-mean-square maps at the paths `at`, globs allowed."""

    source: ClassVar[str] = "Martinez et al., Training Binary Neural Networks with Real-to-Binary, ICLR 2020"

    def __init__(self, *, at: Annotated[list[str], Field(min_length=1)] | None = None) -> None:
        self.at = at
        self.paths: list[str] = []

    def features(self, student: nn.Module, teacher: nn.Module) -> list[str]:
        if self.at is not None:
            self.paths = paired_paths(student, teacher, self.at, what="attention-match")
        else:
            self.paths = _binary_activations(student, teacher)
        if not self.paths:
            raise UsageError(
                "training.losses: attention-match finds no activation behind a binary layer whose map the teacher has, "
                "too; name modules with `at`, or leave the loss out."
            )
        return self.paths

    def __call__(self, outputs: Outputs) -> Tensor:
        terms = []
        for path in self.paths:
            ours, theirs = _map(outputs.features[path]), _map(outputs.teacher_features[path])
            check_shapes(path, tuple(ours.shape), tuple(theirs.shape), what="attention-match")
            terms.append((ours - theirs).square().sum(dim=1).mean())
        return torch.stack(terms).mean()


def _binary_activations(student: nn.Module, teacher: nn.Module) -> list[str]:
    """Paths of the student's activations after its first binary layer whose maps are as large in the teacher."""
    if not isinstance(student, GraphModule) or not isinstance(teacher, GraphModule):
        return []
    nodes = list(student.graph.nodes)
    first = next((i for i, node in enumerate(nodes) if is_call_of(student, node, BinaryLayer)), len(nodes))
    ours = {str(n.target): shape_of(n) for n in nodes[first:] if is_call_of(student, n, ACTIVATIONS)}
    theirs = {str(n.target): shape_of(n) for n in teacher.graph.nodes if n.op == "call_module"}
    both = [path for path in called_once(student) if path in ours and path in called_once(teacher)]
    shapes = ((path, ours[path] or (), theirs[path] or ()) for path in both)
    return [path for path, a, b in shapes if len(a) == len(b) == 4 and a[2:] == b[2:]]


def _map(feature: Tensor) -> Tensor:
    return F.normalize(feature.float().square().mean(dim=1).flatten(1), dim=1)
