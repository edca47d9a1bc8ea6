"""Distribution loss of ReActNet: cross-entropy with the teacher's softmax, and nothing else.

L = -sum_k softmax(z_T)_k log softmax(z_S)_k        least at z_S = z_T, where it is the teacher's entropy

Other tasks have the same less that entropy: what following the teacher means to them, at T = 1.
"""

from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from bnnconvert.train.losses.base import Loss, Outputs


class Distribution(Loss):
    """Cross-entropy with the teacher's softmax; the labels are not used."""

    source: ClassVar[str] = "Liu et al., ReActNet, ECCV 2020, arXiv:2003.03488"

    def __call__(self, outputs: Outputs) -> Tensor:
        assert outputs.teacher_logits is not None
        if outputs.task.name != "classification":
            return outputs.task.follow(outputs.logits.float(), outputs.teacher_logits.float())
        return F.cross_entropy(outputs.logits.float(), outputs.teacher_logits.float().softmax(dim=1))
