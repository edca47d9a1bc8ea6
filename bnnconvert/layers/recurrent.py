"""One time step of a recurrent layer, between its two products.

x_t = W_ih x + b_ih and h_t = W_hh h + b_hh come from linear layers; sums and products are per element.

LSTM   i, f, g, o = x_t + h_t in four parts    c = sigma(f) c + sigma(i) tanh(g),   h = sigma(o) tanh(c)
GRU    r, z, n in three parts                  r = sigma(r_x + r_h), z = sigma(z_x + z_h),
                                               n = tanh(n_x + r n_h),               h = (1 - z) n + z h
RNN                                            h = tanh(x_t + h_t), or ReLU
"""

import torch
from torch import Tensor, nn

from bnnconvert.errors import UsageError

State = tuple[Tensor, ...]


class RecurrentStep(nn.Module):
    """The states after a step from those before it, h first, which has both signs.

    Shapes: x (N, G H), h (N, G H) or (G H,), states (N, H).
    """


class LstmStep(RecurrentStep):
    """The step of an LSTM; states h and c."""

    def forward(self, x: Tensor, h: Tensor, *states: Tensor) -> State:
        """New h and c; c begins at 0."""
        i, f, g, o = (x + h).chunk(4, 1)
        c = i.sigmoid() * g.tanh()
        if states:
            c = c + f.sigmoid() * states[1]
        return o.sigmoid() * c.tanh(), c


class GruStep(RecurrentStep):
    """The step of a GRU; state h."""

    def forward(self, x: Tensor, h: Tensor, *states: Tensor) -> State:
        """New h, which begins at 0."""
        (r, z, n), (r_h, z_h, n_h) = x.chunk(3, 1), h.chunk(3, -1)
        z = (z + z_h).sigmoid()
        made = (1 - z) * (n + (r + r_h).sigmoid() * n_h).tanh()
        return (made + z * states[0] if states else made,)


class TanhStep(RecurrentStep):
    """The step of a plain recurrent layer; state h."""

    def forward(self, x: Tensor, h: Tensor, *states: Tensor) -> State:
        """New h."""
        return (torch.tanh(x + h),)


class ReluStep(nn.Module):
    """The step of a plain recurrent layer with ReLU, whose state has one sign."""

    def forward(self, x: Tensor, h: Tensor, *states: Tensor) -> State:
        """New h."""
        return (torch.relu(x + h),)


STEPS: dict[str, type[nn.Module]] = {"LSTM": LstmStep, "GRU": GruStep, "RNN_TANH": TanhStep, "RNN_RELU": ReluStep}
"""By torch's name for the mode of a layer."""


class Steps(nn.Module):
    """The time steps of a sequence, as many as the model was traced with. Shapes: x (N, T, F), each y (N, F)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The steps in order."""
        if x.shape[1] != self.count:
            raise UsageError(
                f"A recurrent layer was written out for {self.count} time steps and gets {x.shape[1]}; convert the "
                "model with an input of that length."
            )
        return x.unbind(1)

    def extra_repr(self) -> str:
        """Number of steps."""
        return str(self.count)
