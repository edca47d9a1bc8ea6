"""Operators that put numbers in other places and compute nothing, in numpy: on places as well as on constants.

What a node declares is compared with what its arguments give, as a file may say anything.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bnnconvert.artifact.schema import Array
from bnnconvert.runtime.compile.order import PERMUTE, TRANSPOSE, axes_after
from bnnconvert.runtime.compile.plan import NotNative
from bnnconvert.values.program import Batch, Node, Scalar

Arguments = Mapping[str, Any]


def moved(node: Node, x: Array, samples: int) -> list[Array]:
    """What an operator makes of the numbers of `x`, for each of its outputs.

    Raises: NotNative where the node declares other shapes for so many samples.
    """
    arguments = {name: _sized(argument, samples) for name, argument in node.arguments.items()}
    turned = node.op in (PERMUTE, TRANSPOSE)
    made = [x.transpose(axes_after(node, x.ndim))] if turned else MOVES[node.op](x, arguments)
    given, declared = [part.shape for part in made], [spec.sized(samples) for spec in node.outputs]
    if given != declared:
        raise NotNative(f"it declares the shapes {declared} and gives {given}")
    return made


def by_axis(widths: Sequence[int], rank: int) -> list[tuple[int, int]]:
    """What is put before and behind each axis, from torch's list, which begins at the last one."""
    given = list(zip(widths[-2::-2], widths[::-2], strict=True))
    return [(0, 0)] * (rank - len(given)) + given


def _sized(argument: Scalar | tuple[Scalar, ...], samples: int) -> Any:
    if isinstance(argument, tuple):
        return tuple(_sized(one, samples) for one in argument)
    return argument.batch * samples if isinstance(argument, Batch) else argument


def _reshaped(x: Array, a: Arguments) -> list[Array]:
    return [x.reshape(a["shape"] if "shape" in a else a["size"])]


def _flattened(x: Array, a: Arguments) -> list[Array]:
    first, last = a.get("start_dim", 0) % x.ndim, a.get("end_dim", -1) % x.ndim
    return [x.reshape(*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :])]


def _unflattened(x: Array, a: Arguments) -> list[Array]:
    axis = a["dim"] % x.ndim
    inner = np.empty(x.shape[axis], np.bool_).reshape(a["sizes"]).shape
    return [x.reshape(*x.shape[:axis], *inner, *x.shape[axis + 1 :])]


def _squeezed(x: Array, a: Arguments) -> list[Array]:
    given = a["dim"] if isinstance(a["dim"], tuple) else (a["dim"],)
    axes = {axis % x.ndim for axis in given}
    return [x.reshape([size for axis, size in enumerate(x.shape) if axis not in axes or size != 1])]


def _narrow(x: Array, a: Arguments) -> list[Array]:
    start = a["start"] % x.shape[a["dim"]]
    return [np.take(x, range(start, start + a["length"]), axis=a["dim"])]


def _slice(x: Array, a: Arguments) -> list[Array]:
    chosen = slice(a.get("start"), a.get("end"), a.get("step", 1))
    return [x[(*(slice(None),) * (a.get("dim", 0) % x.ndim), chosen)]]


def _chunk(x: Array, a: Arguments) -> list[Array]:
    axis = a.get("dim", 0) % x.ndim
    return _pieces(x, -(-x.shape[axis] // a["chunks"]), axis)


def _pieces(x: Array, length: int, axis: int) -> list[Array]:
    return np.split(x, range(length, x.shape[axis], length), axis)


def _split(x: Array, a: Arguments) -> list[Array]:
    sizes, axis = a["split_sizes"] if "split_sizes" in a else a["split_size"], a.get("dim", 0) % x.ndim
    return np.split(x, np.cumsum(sizes)[:-1], axis) if isinstance(sizes, tuple) else _pieces(x, sizes, axis)


def _unbind(x: Array, a: Arguments) -> list[Array]:
    return list(np.moveaxis(x, a.get("dim", 0), 0))


def _expanded(x: Array, a: Arguments) -> list[Array]:
    size = a["size"]
    own = (1,) * (len(size) - x.ndim) + x.shape
    return [np.broadcast_to(x, [n if wanted == -1 else wanted for n, wanted in zip(own, size, strict=True)])]


def _moved_axes(x: Array, a: Arguments) -> list[Array]:
    return [np.moveaxis(x, a["source"], a["destination"])]


def _padded(x: Array, a: Arguments) -> list[Array]:
    return [np.pad(x, by_axis(a["pad"], x.ndim), _MODES[a["mode"]])]


_MODES: Mapping[str, Any] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _roll(x: Array, a: Arguments) -> list[Array]:
    return [np.roll(x, a["shifts"], a.get("dims") or None)]


def _upsampled(x: Array, a: Arguments) -> list[Array]:
    sizes = a.get("output_size")
    factors = a["scale_factors"] if sizes is None else [w / n for w, n in zip(sizes, x.shape[2:], strict=True)]
    if not all(factor >= 1 and factor == int(factor) for factor in factors):
        raise NotNative("an image is resized by no whole number")
    for axis, factor in enumerate(factors, 2):
        x = x.repeat(int(factor), axis)
    return [x]


def _channel_shuffled(x: Array, a: Arguments) -> list[Array]:
    n, channels, *rest = x.shape
    return [x.reshape(n, a["groups"], channels // a["groups"], *rest).swapaxes(1, 2).reshape(x.shape)]


def _pixel_shuffled(x: Array, a: Arguments) -> list[Array]:
    n, channels, height, width = x.shape
    r = a["upscale_factor"]
    parts = x.reshape(n, channels // r**2, r, r, height, width).transpose(0, 1, 4, 2, 5, 3)
    return [parts.reshape(n, channels // r**2, height * r, width * r)]


def _pixel_unshuffled(x: Array, a: Arguments) -> list[Array]:
    n, channels, height, width = x.shape
    r = a["downscale_factor"]
    parts = x.reshape(n, channels, height // r, r, width // r, r).transpose(0, 1, 3, 5, 2, 4)
    return [parts.reshape(n, channels * r**2, height // r, width // r)]


Move = Callable[[Array, Arguments], list[Array]]
MOVES: Mapping[str, Move] = {
    "aten.reshape.default": _reshaped,
    "aten.view.default": _reshaped,
    "aten.flatten.using_ints": _flattened,
    "aten.unflatten.int": _unflattened,
    "aten.squeeze.dims": _squeezed,
    "aten.squeeze.dim": _squeezed,
    "aten.unsqueeze.default": lambda x, a: [np.expand_dims(x, a["dim"])],
    "aten.contiguous.default": lambda x, _: [x],
    "aten.clone.default": lambda x, _: [x],
    "aten.select.int": lambda x, a: [np.take(x, a["index"], axis=a["dim"])],
    "aten.slice.Tensor": _slice,
    "aten.narrow.default": _narrow,
    "aten.split.Tensor": _split,
    "aten.split.sizes": _split,
    "aten.split_with_sizes.default": _split,
    "aten.chunk.default": _chunk,
    "aten.unbind.int": _unbind,
    "aten.expand.default": _expanded,
    "aten.repeat.default": lambda x, a: [np.tile(x, a["repeats"])],
    "aten.pad.default": _padded,
    "aten.movedim.int": _moved_axes,
    "aten.movedim.intlist": _moved_axes,
    "aten.flip.default": lambda x, a: [np.flip(x, a["dims"])],
    "aten.roll.default": _roll,
    "aten.channel_shuffle.default": _channel_shuffled,
    "aten.pixel_shuffle.default": _pixel_shuffled,
    "aten.pixel_unshuffle.default": _pixel_unshuffled,
    "aten.upsample_nearest1d.vec": _upsampled,
    "aten.upsample_nearest2d.vec": _upsampled,
}
"""By operator, but for an order of axes: numbers and the node's arguments to the numbers of each output."""
