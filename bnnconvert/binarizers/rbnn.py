"""RBNN: weights rotated towards the nearest corner of the binary cube before their sign is taken.

X_o = (W_o - mean W_o) / std W_o         per filter, unbiased, as a matrix of a x b values, nearly square
V_o = R1' X_o R2                         R1 of O(a) and R2 of O(b), of the whole layer
U_o = X_o + |sin t_o| (V_o - X_o)        t_o learned, starts at pi / 2: wholly rotated
W^  = |s_o| sign(U_o)                    s_o learned, starts at mean|W_o|

backward, h = the estimator's gradient at U, R1 and R2 constants:
  g_X = (1 - |sin t|) h + |sin t| R1 h R2',    g_t = cos t sign(sin t) sum h (V - X)

Once an epoch, on its first batch, the rotations climb sum <sign(V), V> by turns, `rounds` times:
  B = sign(V),   R1 = polar factor of sum X_o R2 B_o',   R2 = polar factor of sum X_o' R1 B_o

The bits of U are stored, so no rotation is left at run time. The paper starts from random rotations and from scratch;
ours start from the identity, so that a rotated filter is still close to the pretrained one. The authors' code lets no
gradient through V, which with t = pi / 2 leaves none for X; the paper's formula, which is the one above, does.
"""

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from bnnconvert.binarizers.base import Plane, WeightBinarizer, per_output
from bnnconvert.estimators.base import Estimator, sign_pm1


class RbnnWeight(WeightBinarizer):
    """Sign of the rotated, standardised latent weight times a learned positive scale."""

    source: ClassVar[str] = "Lin et al., Rotated Binary Neural Network, NeurIPS 2020, arXiv:2009.13055"
    left: Tensor
    right: Tensor
    rotated_at: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        estimator: Estimator,
        rounds: Annotated[int, Field(ge=0)] = 3,
        epsilon: Annotated[float, Field(gt=0)] = 1e-12,
    ) -> None:
        super().__init__()
        self.estimator = estimator
        self.rounds, self.epsilon = rounds, epsilon
        a, b = nearest_square(math.prod(shape[1:]))
        self.register_buffer("left", torch.eye(a))
        self.register_buffer("right", torch.eye(b))
        self.register_buffer("rotated_at", torch.tensor(-1.0))
        self.angle = nn.Parameter(torch.full((shape[0],), math.pi / 2))
        self.scale = nn.Parameter(torch.ones(shape[0]))
        self._progress, self._is_due = 0.0, False

    def advance(self, progress: float) -> None:
        # A run that goes on in the middle of an epoch has rotated in it already; the buffer says so.
        self._progress, self._is_due = progress, abs(float(self.rotated_at) - progress) > 1e-6

    def planes(self, weight: Tensor) -> list[Plane]:
        x = self.standardised(weight)
        if self.training and self._is_due:
            self.rotate(x.detach())
            self.rotated_at.fill_(self._progress)
            self._is_due = False
        share = per_output(self.angle.sin().abs(), 3)
        mixed = x + share * (self.left.T @ x @ self.right - x)
        return [Plane(self.estimator(mixed.reshape(weight.shape)), self.scale.abs())]

    def standardised(self, weight: Tensor) -> Tensor:
        """Filters without mean and with unit deviation, as matrices. Shapes: (O, ...) -> (O, a, b)."""
        rows = weight.flatten(1)
        centred = rows - rows.mean(dim=1, keepdim=True)
        # One weight per filter has no deviation: the unbiased estimate would be NaN.
        deviation = centred.std(dim=1, keepdim=True, correction=min(1, rows.shape[1] - 1))
        return (centred / deviation.clamp(min=self.epsilon)).view(len(rows), len(self.left), len(self.right))

    @torch.no_grad()
    def rotate(self, x: Tensor) -> None:
        """Turn the rotations towards the signs of what they give. Shapes: x (O, a, b)."""
        for _ in range(self.rounds):
            signs = sign_pm1(self.left.T @ x @ self.right)
            self.left.copy_(_polar(torch.einsum("oab,bc,odc->ad", x, self.right, signs)))
            self.right.copy_(_polar(torch.einsum("oab,ac,ocd->bd", x, self.left, signs)))

    @torch.no_grad()
    def calibrate(self, weight: Tensor) -> None:
        self.rotate(self.standardised(weight))
        self.scale.copy_(weight.abs().flatten(1).mean(dim=1))


def nearest_square(count: int) -> tuple[int, int]:
    """Factors of `count`, the first the greatest that is no greater than its root."""
    a = next(a for a in range(math.isqrt(count), 0, -1) if count % a == 0)
    return a, count // a


def _polar(m: Tensor) -> Tensor:
    """The orthogonal R with the greatest trace of R' m."""
    u, _, vh = torch.linalg.svd(m)
    rotation: Tensor = u @ vh
    return rotation
