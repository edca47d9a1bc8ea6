"""TSQ's solver: low-bit weights of one layer that lead to the codes which its float weights led to.

    min over a > 0, w in choices^n, for each filter:    |y - Q(v)|^2,    v = s a X w + t

X holds the patches that the layer sees, y the codes, and s and t are what stands between its output and the quantizer
Q. With an auxiliary z, and Q relaxed to the clip that it steps along:

    min |y - clip(z, low, high)|^2 + l |z - v|^2                                  l grows

v fixed   each z is the best of  min(low, v),  clip((l v + y) / (1 + l), low, high),  max(high, v)
z fixed   u = (z - t) / s,   a = u'Xw / |Xw|^2,   w by coordinate descent on (u'Xw)^2 / |Xw|^2

The descent knows G = X'X and c = X'u only: a change of w_j by d adds d c_j to u'Xw and 2 d (Gw)_j + d^2 G_jj to
|Xw|^2. Filters are independent, so each coordinate is decided for all of them at once. The first u is the output of the
float weights, which is right for the codes; where no Q follows, it stays that, and one descent is all.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

PENALTIES = (0.01, 0.04, 0.16, 0.64, 2.56)
"""Values of l in turn. The paper says only that it grows; from larger ones z hardly leaves v, and nothing moves."""
SWEEPS = 10
"""How often a descent looks at every coordinate at most; it ends where nothing changes."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Codes:
    """What outputs u become: quantize(s u + t), a map of each value that steps along clip(s u + t, low, high).

    Shapes: s and t (O,).
    """

    s: Tensor
    t: Tensor
    quantize: Callable[[Tensor], Tensor]
    low: float
    high: float

    def entering(self, u: Tensor) -> Tensor:
        """What the quantizer sees. Shapes: (G, P, O / G), the same comes back."""
        return u * self._per_filter(self.s, u) + self._per_filter(self.t, u)

    def of(self, u: Tensor) -> Tensor:
        """Codes of outputs. Shapes: (G, P, O / G), the same comes back."""
        return self.quantize(self.entering(u))

    def outputs(self, z: Tensor, u: Tensor) -> Tensor:
        """Outputs that give z to the quantizer; u where it sees none of them. Shapes: (G, P, O / G), all."""
        s, t = self._per_filter(self.s, z), self._per_filter(self.t, z)
        return torch.where(s == 0, u, (z - t) / s.masked_fill(s == 0, 1))

    def _per_filter(self, values: Tensor, like: Tensor) -> Tensor:
        return values.to(like).view(len(like), 1, -1)


@dataclass(frozen=True)
class Weights:
    """Weights a w of low bits. Shapes: w (G, O / G, n), a (G, O / G)."""

    w: Tensor
    a: Tensor

    @property
    def values(self) -> Tensor:
        """The weights themselves. Shapes: those of w."""
        return self.w * self.a[..., None]

    def outputs(self, patches: Tensor) -> Tensor:
        """What the layer gives. Shapes: patches (G, P, n) -> (G, P, O / G)."""
        return patches @ self.values.mT


@dataclass(frozen=True)
class Fit:
    """Weights that were found, and the squared errors of each filter at the start and with them.

    Shapes: before, after and `size`, the squares of what was wanted, (G, O / G).
    """

    weights: Weights
    before: Tensor
    after: Tensor
    size: Tensor

    @property
    def shares(self) -> tuple[float, float]:
        """Errors of the whole layer at the start and now, as shares of the squares of what was wanted."""
        size = max(float(self.size.sum()), torch.finfo(torch.float32).tiny)
        return float(self.before.sum()) / size, float(self.after.sum()) / size


def fit(patches: Tensor, wanted: Tensor, start: Weights, *, choices: tuple[int, ...], codes: Codes | None) -> Fit:
    """Weights from `choices` whose codes, or outputs if there are none, come near to those of the outputs `wanted`.

    A filter that gets no better stays as it is.

    Shapes: patches (G, P, n), wanted (G, P, O / G).
    """
    gram = (patches.mT @ patches).double()
    target = wanted if codes is None else codes.of(wanted)

    def error(u: Tensor) -> Tensor:
        return (target - (u if codes is None else codes.of(u))).square().sum(dim=1)

    best = start
    before = after = error(start.outputs(patches))
    now, aim = start, wanted
    for penalty in (None, *(PENALTIES if codes is not None else ())):
        if codes is not None and penalty is not None:
            u = now.outputs(patches)
            aim = codes.outputs(auxiliary(codes.entering(u), target, penalty, low=codes.low, high=codes.high), u)
        now = descend(gram, (aim.mT @ patches).double(), now.w, choices=choices)
        found = error(now.outputs(patches))
        better = found < after
        after = torch.where(better, found, after)
        best = Weights(torch.where(better[..., None], now.w, best.w), torch.where(better, now.a, best.a))
    return Fit(best, before, after, target.square().sum(dim=1))


def auxiliary(v: Tensor, y: Tensor, penalty: float, *, low: float, high: float) -> Tensor:
    """The z with the least (y - clip(z, low, high))^2 + penalty (z - v)^2. Shapes: those of v and y."""
    best = ((v * penalty + y) / (1 + penalty)).clamp_(low, high)
    least = (y - best).square_().addcmul_(best - v, best - v, value=penalty)
    for other, end in ((v.clamp(max=low), low), (v.clamp(min=high), high)):
        cost = (y - end).square_().addcmul_(other - v, other - v, value=penalty)
        best = torch.where(cost < least, other, best)
        least = torch.minimum(cost, least)
    return best


def descend(gram: Tensor, cross: Tensor, w: Tensor, *, choices: tuple[int, ...]) -> Weights:
    """The w that coordinate descent reaches from here, and the best scale for it.

    Shapes: gram (G, n, n), cross and w (G, O / G, n).
    """
    code, wish = w.to(gram).mT.contiguous(), cross.mT.contiguous()  # (G, n, O / G): a coordinate's values side by side
    twice = 2 * (gram @ code)  # 2 Gw
    product, square = (code * wish).sum(1), (code * twice).sum(1) / 2  # u'Xw and |Xw|^2
    diagonal, options = gram.diagonal(dim1=1, dim2=2), gram.new_tensor(choices).reshape(-1, 1, 1)
    # A w that X does not see fits nothing; and the last digits must not make a code go back and forth.
    unseen = (diagonal.sum(1) * 1e-12)[:, None]
    for _ in range(SWEEPS):
        is_settled = True
        for j in range(gram.shape[1]):
            step = options - code[:, j]  # (choices, G, O / G)
            products = torch.addcmul(product, step, wish[:, j])
            squares = torch.addcmul(square, step, torch.addcmul(twice[:, j], step, diagonal[:, j, None]))
            worth, chosen = products.square().div_(squares).masked_fill_(squares <= unseen, 0.0).max(dim=0)
            own = product.square().div_(square).masked_fill_(square <= unseen, 0.0)
            better = worth > own * (1 + _ROUNDING)
            if bool(better.any()):
                is_settled = False
                product = torch.where(better, products.gather(0, chosen[None])[0], product)
                square = torch.where(better, squares.gather(0, chosen[None])[0], square)
                moved = step.gather(0, chosen[None])[0] * better
                code[:, j] += moved
                twice.baddbmm_(gram[:, j, :, None], moved[:, None], alpha=2)
        if is_settled:
            break
    scale = torch.where(square > unseen, product / square, 0.0)
    sign = torch.where(scale < 0, -1.0, 1.0)
    return Weights((code * sign[:, None]).mT.to(w), (scale * sign).to(w))
