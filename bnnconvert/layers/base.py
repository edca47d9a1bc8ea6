"""What the trainable binary layers share: latent weight, binarizers, staged training, an exact evaluation form.

    training     y = map(x^, w^) + bias                                     one float convolution or product
    evaluation   y = sum_pm beta_p alpha_m map(A_p, B_m) + bias             map of ±1 tensors: exact integers

Both are the same sum. The second keeps the accumulator an integer, so that a packed program can reproduce it
bit for bit: scale first, then planes added in the order p, m, then the gain where the layer has one, then the bias.
"""

from abc import abstractmethod
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from bnnconvert.binarizers.base import InputBinarizer, Plane, WeightBinarizer, WindowInput
from bnnconvert.gains.base import Gain
from bnnconvert.layers.levels import filter_levels, levels


class BinaryLayer(nn.Module):
    """A layer with binary weights and, unless it is weight-only, a binary input.

    `weights_are_binary` and `inputs_are_binary` are switched off in early stages of a staged run; the operand is then
    the binarizer's float stand-in, on 2^bits levels where `weight_bits` or `input_bits` is given. Entries of the
    latent weight where `held` is not 0 are frozen at that value. In evaluation each pair of planes is a product, as in
    the packed program, unless `planes_apart` is off.
    """

    kind: ClassVar[str]
    weight: nn.Parameter
    bias: nn.Parameter | None
    weight_binarizer: WeightBinarizer
    input_binarizer: InputBinarizer | None
    gain: Gain | None
    weights_are_binary: bool = True
    inputs_are_binary: bool = True
    weight_bits: int | None = None
    input_bits: int | None = None
    planes_apart: bool = True
    held: Tensor | None

    def __init__(
        self,
        weight: nn.Parameter,
        bias: nn.Parameter | None,
        *,
        weight_binarizer: WeightBinarizer,
        input_binarizer: InputBinarizer | None,
        gain: Gain | None = None,
    ) -> None:
        super().__init__()
        # Only a run whose stages freeze weights has it, so it is no part of a student's state dict.
        self.register_buffer("held", None, persistent=False)
        self.weight = weight
        self.bias = bias
        self.weight_binarizer = weight_binarizer
        self.input_binarizer = input_binarizer
        self.gain = gain

    @property
    def pads_ones(self) -> bool:
        """Whether the input is padded with +1 rather than 0."""
        return False

    @property
    def is_weight_only(self) -> bool:
        """Whether the input stays float by design."""
        return self.input_binarizer is None

    @abstractmethod
    def linear_map(self, x: Tensor, weight: Tensor, *, one: float = 1.0) -> Tensor:
        """The layer's map without its bias, padding included; `one` is what a padding of ones stands for."""

    @abstractmethod
    def windows(self, x: Tensor, *, one: float = 1.0) -> Tensor:
        """What each position of the output sees of `x`, padding included, each group of filters its own part.

        Shapes: (N, G, n, positions), n the weights of a filter.
        """

    @abstractmethod
    def positions(self, y: Tensor) -> Tensor:
        """An output of the layer in the order of `windows`. Shapes: (N, G, O / G, positions)."""

    @abstractmethod
    def from_positions(self, y: Tensor, x: Tensor) -> Tensor:
        """An output for the input `x`, from the order of `windows`. Shapes: y (N, G, O / G, positions)."""

    @property
    def unpackable(self) -> str | None:
        """Why this layer cannot be exported, as one of its rows says; None where none does."""
        rows = (self.weight_binarizer, self.input_binarizer, self.gain)
        return next((row.unpackable for row in rows if row is not None and row.unpackable is not None), None)

    def weight_planes(self) -> list[Plane]:
        """Planes of the latent weight as it stands."""
        return self.weight_binarizer.planes(self.weight)

    def planes_scale(self, planes: list[Plane]) -> Tensor:
        """Scale of each accumulator plane and output channel, beta_p alpha_m, with the weight's own planes.

        Shapes: (P * M, O), p slowest.
        """
        ones = self.weight.new_ones(())
        alphas = torch.stack([(ones if p.scale is None else p.scale).expand(len(p.pm1)) for p in planes])
        if self.input_binarizer is None:
            return alphas
        betas = self.input_binarizer.scales().to(alphas)
        return (betas[:, None, None] * alphas[None]).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Output of the layer."""
        if self.inputs_are_binary and isinstance(self.input_binarizer, WindowInput):
            y = self._by_windows(x)
        elif self.training or not (self.weights_are_binary and self.inputs_are_binary and self.planes_apart):
            y = self._mixed(x)
        else:
            y = self._exact(x)
        if self.gain is not None and self._gain_applies(self.gain):
            y = self.gain(x, y)
        bias = self.effective_bias()
        return y if bias is None else y + self._per_channel(bias, y)

    def _gain_applies(self, gain: Gain) -> bool:
        are_binary = {"weights": self.weights_are_binary, "inputs": self.inputs_are_binary}
        return gain.stands_for is None or are_binary[gain.stands_for]

    def _mixed(self, x: Tensor) -> Tensor:
        x, one = self.effective_input(x)
        return self.linear_map(x, self.effective_weight(), one=one)

    def _by_windows(self, x: Tensor) -> Tensor:
        seen, weight = self.effective_windows(x), self.effective_weight()
        filters = weight.reshape(seen.shape[1], -1, seen.shape[2])
        y = self.from_positions(filters @ seen, x)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return y
        assert isinstance(self.input_binarizer, WindowInput)
        through = self.linear_map(self.input_binarizer.passed(x), weight.detach())
        return y + (through - through.detach())

    def effective_windows(self, x: Tensor) -> Tensor:
        """What the weights of a training step meet at each position. Shapes: (N, G, n, positions)."""
        if self.inputs_are_binary and isinstance(self.input_binarizer, WindowInput):
            padded = partial(self.windows, one=0.0)
            return self.input_binarizer.in_windows(x, padded, pads_ones=self.pads_ones)
        x, one = self.effective_input(x)
        return self.windows(x, one=one)

    def effective_input(self, x: Tensor) -> tuple[Tensor, float]:
        """The input that a training step multiplies with, and what a padding of ones stands for in it."""
        if self.input_binarizer is None:
            return x, 1.0
        if not self.inputs_are_binary:
            return self._relaxed_input(x), 1.0
        return self.input_binarizer(x), self.input_binarizer.one() if self.pads_ones else 1.0

    def effective_weight(self) -> Tensor:
        """The weight that a training step multiplies with: quantized, or what stands for it in this stage."""
        # Through `where`, frozen entries get no gradient, so that they count in no norm of it either.
        latent = self.weight if self.held is None else torch.where(self.held == 0, self.weight, self.held)
        if self.weights_are_binary:
            return self.weight_binarizer(latent)  # type: ignore[no-any-return]
        weight = self.weight_binarizer.relaxed(latent)
        return weight if self.weight_bits is None else filter_levels(weight, self.weight_bits)

    def effective_bias(self) -> Tensor | None:
        """The bias as the method has it in this stage."""
        return None if self.bias is None else self.weight_binarizer.bias(self.bias, binary=self.weights_are_binary)

    def _relaxed_input(self, x: Tensor) -> Tensor:
        assert self.input_binarizer is not None
        x = self.input_binarizer.relaxed(x)
        return x if self.input_bits is None else levels(x, self.input_bits)

    def _exact(self, x: Tensor) -> Tensor:
        inputs = [x] if self.input_binarizer is None else [p.pm1 for p in self.input_binarizer.planes(x)]
        weights = self.weight_planes()
        scales = self.planes_scale(weights)
        parts = [self.linear_map(a, b.pm1) for a in inputs for b in weights]
        y = parts[0] * self._per_channel(scales[0], parts[0])
        for part, scale in zip(parts[1:], scales[1:], strict=True):
            y = y + part * self._per_channel(scale, part)
        return y

    @abstractmethod
    def _per_channel(self, values: Tensor, like: Tensor) -> Tensor:
        """View per-output-channel values so that they broadcast over `like`."""


def parameters_of(layer: nn.Conv2d | nn.Linear) -> tuple[nn.Parameter, nn.Parameter | None]:
    """Weight and bias of a float layer, themselves and not copies."""
    assert isinstance(layer.weight, nn.Parameter), "the planner keeps layers with computed weights float"
    assert layer.bias is None or isinstance(layer.bias, nn.Parameter)
    return layer.weight, layer.bias
