"""Tensors of other ranks as images (N, C, H, W) and back, so that every layer on a channel axis is a convolution.

sequence  (N, C, L)     <-> (N, C, L, 1)
tokens    (N, T, C)     <-> (N, C, T, 1)
grid      (N, H, W, C)  <-> (N, C, H, W)
block     (N, A, B, D, ..., C) <-> (N, C, A, B D ...)
volume    (N, C, D, H, W) -> (N D', C k, H, W), what each of D' windows of k frames sees, and back from (N D', O, H, W)
phases    (N, O s s, H, W) -> (N, O, s H, s W), one convolution for each phase of a transposed one; of 1 to 3 axes
          (N, O a b, H, W), ... -> (N, O s s, H', W'), of several convolutions for a b phases each
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Kind = Literal["sequence", "tokens", "grid", "block"]


class View(nn.Module):
    """What both directions share."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind

    def extra_repr(self) -> str:
        """The kind."""
        return self.kind


class ToImage(View):
    """View as an image. Shapes: x of the kind, y (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Channels second, four axes."""
        if self.kind == "block":
            x = x.flatten(2, -2)
        if self.kind in ("grid", "block"):
            return x.permute(0, 3, 1, 2)
        return (x if self.kind == "sequence" else x.permute(0, 2, 1)).unsqueeze(3)


class FromImage(View):
    """View of an image as what it was; of a block, all of its sizes but the first are known here.

    Shapes: x (N, C, H, W), y of the kind.
    """

    def __init__(self, kind: Kind, sizes: tuple[int, ...] = ()) -> None:
        super().__init__(kind)
        self.sizes = sizes

    def forward(self, x: Tensor) -> Tensor:
        """The kind's axes, laid out as a linear layer's output is: the model may call `view` on it."""
        if self.kind == "sequence":
            return x.squeeze(3)
        y = x.permute(0, 2, 3, 1)
        if self.kind == "block":
            y = y.reshape(*y.shape[:2], *self.sizes, y.shape[3])
        return (y.squeeze(2) if self.kind == "tokens" else y).contiguous()


class Frames(nn.Module):
    """Windows along depth, as images whose channels are the frames of one window; zeros beyond the ends.

    Shapes: x (N, C, D, H, W), y (N D', C k, H, W), a channel's frames side by side.
    """

    def __init__(self, kernel: int, stride: int, padding: int, dilation: int) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding, self.dilation = kernel, stride, padding, dilation

    def forward(self, x: Tensor) -> Tensor:
        """All windows of all samples."""
        if self.padding:
            x = F.pad(x, (0, 0, 0, 0, self.padding, self.padding))
        positions = (x.shape[2] - self.dilation * (self.kernel - 1) - 1) // self.stride + 1
        starts = (self.dilation * tap for tap in range(self.kernel))
        taps = [x[:, :, a : a + self.stride * (positions - 1) + 1 : self.stride] for a in starts]
        return torch.stack(taps, 2).permute(0, 3, 1, 2, 4, 5).flatten(2, 3).flatten(0, 1)

    def extra_repr(self) -> str:
        """The window."""
        return f"kernel={self.kernel}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}"


class FromFrames(nn.Module):
    """Images as volumes of so many frames again. Shapes: x (N D, O, H, W), y (N, O, D, H, W)."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.depth = depth

    def forward(self, x: Tensor) -> Tensor:
        """Depth behind the channels."""
        return torch.unflatten(x, 0, (-1, self.depth)).transpose(1, 2)

    def extra_repr(self) -> str:
        """Frames."""
        return f"{self.depth}"


class JoinPhases(nn.Module):
    """Phases of a transposed convolution from convolutions for some each: two along each axis that is `split`.

    The last axis changes fastest. Those of fewer taps end a row earlier, where nothing is looked at.

    Shapes: each x (N, O a b, H, W), with its own a and b, y (N, O sh sw, H', W'); so, too, of one axis or three.
    """

    def __init__(self, counts: tuple[tuple[int, ...], ...], split: tuple[bool, ...]) -> None:
        super().__init__()
        self.counts, self.split = counts, split

    def forward(self, *parts: Tensor) -> Tensor:
        """All phases of an output channel side by side."""
        axes = len(self.split)
        sizes = [max(part.shape[2 + axis] for part in parts) for axis in range(axes)]
        whole = []
        for part, counts in zip(parts, self.counts, strict=True):
            missing = [size - now for size, now in zip(sizes, part.shape[2:], strict=True)]
            ends = [amount for more in reversed(missing) for amount in (0, more)]
            whole.append(torch.unflatten(F.pad(part, ends), 1, (-1, *counts)))  # (N, O, a, b, H', W')
        for axis in reversed(range(axes)):
            if self.split[axis]:
                whole = [torch.cat(pair, 2 + axis) for pair in zip(whole[::2], whole[1::2], strict=True)]
        return whole[0].flatten(1, 1 + axes)

    def extra_repr(self) -> str:
        """Phases of each."""
        return f"counts={self.counts}, split={self.split}"


class Interleave(nn.Module):
    """The phases of a transposed convolution in their places, and its padding cut off.

    Shapes: x (N, O sh sw, H, W), y (N, O, height, width); so, too, of one axis or three.
    """

    def __init__(self, stride: tuple[int, ...], start: tuple[int, ...], size: tuple[int, ...]) -> None:
        super().__init__()
        self.stride, self.start, self.size = stride, start, size

    def forward(self, x: Tensor) -> Tensor:
        """Every phase at its offset."""
        count = len(self.stride)
        # Not by reshape, whose -1 says nothing where a detector has found nothing and there are 0 samples.
        phases = torch.unflatten(x, 1, (-1, *self.stride))  # (N, O, sh, sw, H, W)
        y = phases.movedim(tuple(range(2, 2 + count)), tuple(range(3, 3 + 2 * count, 2)))  # (N, O, H, sh, W, sw)
        for axis in reversed(range(count)):
            y = y.flatten(2 + 2 * axis, 3 + 2 * axis)
        for axis, (start, size) in enumerate(zip(self.start, self.size, strict=True), start=2):
            y = y.narrow(axis, start, size)
        return y

    def extra_repr(self) -> str:
        """Stride and place."""
        return f"stride={self.stride}, start={self.start}, size={self.size}"
