"""Rotation-consistent margin: a class may turn as a whole when a network is quantized, its members may not scatter.

    A(f) = angle(f_T, f_S)          f_T, f_S what enters the last layer of teacher and student
    I_i  = A(f_i) - A(c_y)          c_y the centre of the sample's class: one of the teacher's, one of the student's
    L    = -log e_y / (e_y + sum_{j != y} exp(s cos t_j)),   e_y = exp(s cos(t_y + m + r |I_i|))

t_j is the angle between f_S and the weights of class j in the last layer, m is added to it as in ArcFace, r is `rate`.
A centre is a running mean: that of the first batch with its class, then a tenth of each new one; the paper says only
that it is a mean. Gradients pass I_i to f_S, with f_T and the centres as constants. Cosines are kept in ±(1 - 1e-7),
and the turned angle at pi or below. Angles of class and sample are the same under a rotation that turns every vector by
one angle, as any does in a plane.

The term knows directions only, so it goes beside one that trains the sizes and the bias of the logits. Scale and margin
start as in ArcFace. Networks of one bit are outside the paper.
"""

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

from bnnconvert.errors import UsageError
from bnnconvert.graph import BATCH_NORMS, PASS_THROUGH, input_of, module_of, skip_back
from bnnconvert.layers.linear import BinaryLinear
from bnnconvert.train.features import entering
from bnnconvert.train.losses.base import Loss, Outputs

PACE = 0.1
_LARGEST = 1 - 1e-7


class RotationMargin(Loss):
    """Margin-softmax over the angles to the classes, whose margin grows with the sample's own quantization error."""

    source: ClassVar[str] = (
        "Wu et al., Rotation Consistent Margin Loss for Efficient Low-bit Face Recognition, CVPR 2020"
    )

    needs_classes: ClassVar[bool] = True

    def __init__(
        self,
        *,
        scale: Annotated[float, Field(gt=0)] = 64.0,
        margin: Annotated[float, Field(ge=0)] = 0.5,
        rate: Annotated[float, Field(ge=0)] = 1.0,
    ) -> None:
        self.scale, self.margin, self.rate = scale, margin, rate
        self.path = ""
        self.layer: nn.Linear | BinaryLinear | None = None
        self.centres: ClassCentres | None = None

    def features(self, student: nn.Module, teacher: nn.Module) -> list[str]:
        (path, ours), (other, theirs) = _classifier(student, "student"), _classifier(teacher, "teacher")
        if path != other or ours.weight.shape != theirs.weight.shape:
            student_shape, teacher_shape = tuple(ours.weight.shape), tuple(theirs.weight.shape)
            raise UsageError(
                "training.losses: 'rotation-margin' compares what enters the last layer, and that is "
                f"{path!r} of {student_shape} in the student and {other!r} of {teacher_shape} in the teacher; "
                "leave the loss out."
            )
        self.path, self.layer = path, ours
        self.centres = ClassCentres(*ours.weight.shape)
        return [entering(path)]

    def memory(self) -> nn.Module | None:
        return self.centres

    def close(self) -> None:
        self.layer = None

    def __call__(self, outputs: Outputs) -> Tensor:
        labels = outputs.labels
        ours, theirs = (of[entering(self.path)].float() for of in (outputs.features, outputs.teacher_features))
        with torch.autocast(ours.device.type, enabled=False):  # half a precision has cosines of 1, and no angle there
            return self._loss(ours, theirs, labels)

    def _loss(self, ours: Tensor, theirs: Tensor, labels: Tensor) -> Tensor:
        assert self.centres is not None
        own, common = self.centres(ours.detach(), theirs, labels)
        error = angle(ours, theirs) - angle(own, common)
        cosines = F.linear(F.normalize(ours, dim=1), F.normalize(self._directions(), dim=1))
        target = _clamped(cosines.gather(1, labels[:, None])).arccos()
        turned = (target + self.margin + self.rate * error.abs()[:, None]).clamp(max=math.pi).cos()
        return F.cross_entropy(self.scale * cosines.scatter(1, labels[:, None], turned), labels)

    def _directions(self) -> Tensor:
        assert self.layer is not None
        weight = self.layer.effective_weight() if isinstance(self.layer, BinaryLinear) else self.layer.weight
        return weight.float()


class ClassCentres(nn.Module):
    """Running means of what student and teacher make of each class, the same in all processes.

    Shapes: both (classes, features), seen (classes,).
    """

    student: Tensor
    teacher: Tensor
    seen: Tensor

    def __init__(self, classes: int, features: int) -> None:
        super().__init__()
        self.register_buffer("student", torch.zeros(classes, features))
        self.register_buffer("teacher", torch.zeros(classes, features))
        self.register_buffer("seen", torch.zeros(classes, dtype=torch.bool))

    @torch.no_grad()
    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Centres of the samples' classes, for student and teacher, after a look at the batch.

        Shapes: student and teacher (N, features), labels (N,); the centres (N, features) each.
        """
        gathered = torch.zeros(len(self.seen), 2 * student.shape[1] + 1, device=student.device)
        gathered.index_add_(0, labels, torch.cat([student, teacher, student.new_ones(len(student), 1)], dim=1))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(gathered)
        count = gathered[:, -1:]
        means = gathered[:, :-1] / count.clamp(min=1)
        pace = torch.where(self.seen[:, None], PACE, 1.0) * (count > 0)
        for centre, mean in zip((self.student, self.teacher), means.chunk(2, dim=1), strict=True):
            centre.lerp_(mean, pace)
        self.seen |= count[:, 0] > 0
        return self.student[labels], self.teacher[labels]


def angle(a: Tensor, b: Tensor) -> Tensor:
    """Angle between rows. Shapes: (N, features) each, result (N,). Units: radians."""
    return _clamped(F.cosine_similarity(a, b, dim=1)).arccos()


def _clamped(cosine: Tensor) -> Tensor:
    return cosine.clamp(-_LARGEST, _LARGEST)


def _classifier(model: nn.Module, whose: str) -> tuple[str, nn.Linear | BinaryLinear]:
    """Path and layer that gives the logits, a batch norm behind it allowed.

    Raises: UsageError where that is no linear layer.
    """
    if isinstance(model, GraphModule):
        (output,) = (node for node in model.graph.nodes if node.op == "output")
        last = skip_back(model, input_of(output), (*BATCH_NORMS, *PASS_THROUGH, nn.Flatten))
        layer = module_of(model, last)
        if isinstance(layer, nn.Linear | BinaryLinear):
            return str(last.target), layer
    raise UsageError(
        f"training.losses: 'rotation-margin' is about the linear layer that gives the logits, and the {whose} ends in "
        "none; leave the loss out."
    )
