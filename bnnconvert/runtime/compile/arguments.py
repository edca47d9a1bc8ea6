"""Arguments of nodes as numbers, and how windows lie by them."""

from bnnconvert.runtime.compile.plan import Geometry, NotNative
from bnnconvert.values.program import Argument, Node, NonFinite


def number(argument: Argument) -> float:
    """A scalar argument."""
    if isinstance(argument, NonFinite):
        return float(argument.number)
    if isinstance(argument, bool | int | float):
        return float(argument)
    raise NotNative(f"an operand is {argument!r} where a number is known")


def pair(argument: Argument, *, first: int | None = None) -> tuple[int, int]:
    """An integer, or a list of one or two; with `first` an integer or a list of one for the second of two axes."""
    values = argument if isinstance(argument, tuple) else (argument,)
    numbers = [v for v in values if isinstance(v, int)]
    if len(numbers) != len(values) or not 1 <= len(numbers) <= (2 if first is None else 1):
        raise NotNative(f"an argument is {argument!r} where one or two integers are known")
    return (numbers[0] if first is None else first), numbers[-1]


def geometry(
    node: Node, kernel: tuple[int, int], size: tuple[int, int], *, stride: tuple[int, int] = (1, 1), rank: int = 2
) -> Geometry:
    """Geometry from the arguments that convolutions and pools share; `stride` is what a missing one means.

    With rank 1 the arguments are for the second of the two axes.
    """
    given = node.arguments
    one, none = (1, 0) if rank == 1 else (None, None)
    strides = pair(given["stride"], first=one) if given.get("stride") else stride
    padding, dilation = pair(given.get("padding", 0), first=none), pair(given.get("dilation", 1), first=one)
    out = []
    for n, k, s, p, d in zip(size, kernel, strides, padding, dilation, strict=True):
        room = n + 2 * p - d * (k - 1) - 1
        if room < 0 or s < 1:
            raise NotNative("a window is larger than the image")
        count = room // s + 1
        # Rounded up, as long as the last window begins inside the image or its left padding.
        if given.get("ceil_mode") and room % s and count * s < n + p:
            count += 1
        out.append(count)
    return Geometry(kernel, strides, dilation, padding, (out[0], out[1]))


def padded_alike(node: Node, kernel: tuple[int, int], size: tuple[int, int]) -> Geometry:
    """Geometry of a convolution whose padding is `valid`, or `same`: as large as its input."""
    given = node.arguments
    strides, dilation = pair(given.get("stride", 1)), pair(given.get("dilation", 1))
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if given["padding"] == "same" and strides == (1, 1):
        return Geometry(kernel, strides, dilation, (reach[0] // 2, reach[1] // 2), size)
    out = [(n - r - 1) // s + 1 for n, r, s in zip(size, reach, strides, strict=True)]
    if given["padding"] != "valid" or min(out) < 1:
        raise NotNative(f"a convolution pads {given['padding']!r}")
    return Geometry(kernel, strides, dilation, (0, 0), (out[0], out[1]))
