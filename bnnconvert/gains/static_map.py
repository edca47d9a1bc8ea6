"""The learned output scale of XNOR-Net++: one factor in place of the weights' alpha and the input's K.

case 1   Gamma_ohw = alpha_o
case 2   Gamma_ohw dense
case 3   Gamma_ohw = alpha_o beta_hw
case 4   Gamma_ohw = alpha_o beta_h gamma_w        rank 1, the best in the paper
y = Gamma y',   g_y' = Gamma g,   g_Gamma = sum_n g y'

alpha starts at mean|W_o| and the maps at 1, where the paper says nothing. Cases 2 to 4 hold for one size of the input
and refuse others. A linear layer has alpha only.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from bnnconvert.errors import UsageError
from bnnconvert.gains.base import Gain, GainSite, Operand


class StaticMap(Gain):
    """Learned scale per channel and per pixel; with plain signs as weights it is their only scale."""

    source: ClassVar[str] = "Bulat & Tzimiropoulos, XNOR-Net++, BMVC 2019, arXiv:1909.13863"
    stands_for: ClassVar[Operand | None] = "weights"
    channels: nn.Parameter | None
    pixels: nn.Parameter | None
    rows: nn.Parameter | None
    columns: nn.Parameter | None

    def __init__(self, *, site: GainSite, case: Literal[1, 2, 3, 4] = 4) -> None:
        super().__init__(site=site)
        case = case if site.kernel else 1
        per_channel = (site.outputs, *(1,) * len(site.kernel))
        shapes: dict[str, tuple[int, ...] | None] = dict.fromkeys(("channels", "pixels", "rows", "columns"))
        if case == 2:
            shapes["pixels"] = (site.outputs, *site.size)
        else:
            shapes["channels"] = per_channel
        if case == 3:
            shapes["pixels"] = site.size
        if case == 4:
            shapes["rows"], shapes["columns"] = (site.size[0], 1), (site.size[1],)
        self.is_per_pixel = case > 1
        for name, shape in shapes.items():
            self.register_parameter(name, None if shape is None else nn.Parameter(torch.ones(shape)))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.is_per_pixel and tuple(y.shape[2:]) != self.site.size:
            made, given = ("x".join(map(str, size)) for size in (self.site.size, y.shape[2:]))
            raise UsageError(
                f"{self.site.path}: its gain 'static-map' was made for outputs of {made} and gets {given}; keep to the "
                "input size that the model was converted for, or choose case 1."
            )
        if self.channels is not None:
            y = y * self.channels
        pixels = self.rows * self.columns if self.rows is not None and self.columns is not None else self.pixels
        return y if pixels is None else y * pixels

    @torch.no_grad()
    def calibrate(self, weight: Tensor) -> None:
        alpha = self.site.per_channel(weight.abs().flatten(1).mean(dim=1))
        for name, parameter in self.named_parameters():
            parameter.fill_(1.0)
            if name == "channels" or (name == "pixels" and parameter.dim() == 3):
                parameter.mul_(alpha)

    def deployed(self) -> nn.Module:
        return _FixedMap(self)


class _FixedMap(nn.Module):
    """The factors of a static map as they stand, the rank-1 one multiplied out over the pixels."""

    channels: Tensor | None
    pixels: Tensor | None

    def __init__(self, gain: StaticMap) -> None:
        super().__init__()
        pixels = gain.pixels if gain.rows is None or gain.columns is None else gain.rows * gain.columns
        self.register_buffer("channels", None if gain.channels is None else gain.channels.detach())
        self.register_buffer("pixels", None if pixels is None else pixels.detach())

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The output times the factors, one after the other."""
        if self.channels is not None:
            y = y * self.channels
        return y if self.pixels is None else y * self.pixels
