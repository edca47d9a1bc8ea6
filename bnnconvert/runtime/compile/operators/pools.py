"""Maxima and averages over windows and over whole images."""

import math

from bnnconvert.runtime.compile.arguments import geometry, number, pair
from bnnconvert.runtime.compile.compiler import Compiler, Handler
from bnnconvert.runtime.compile.made import Made
from bnnconvert.runtime.compile.plan import Geometry, Kind, NotNative, Reduce, Step, StepKind
from bnnconvert.values.program import Node


def pool(reduce: Reduce, rank: int = 2) -> Handler:
    """A pool over windows of images, or with rank 1 of rows."""

    def handle(c: Compiler, node: Node) -> Made:
        a = node.arguments
        x = c.as_grid(c.value(a["self"]))
        kernel = pair(a["kernel_size"], first=1 if rank == 1 else None)
        lay = geometry(node, kernel, x.grid, stride=kernel, rank=rank)
        made = Made((x.channels, *lay.out[2 - rank :]), parts=x.parts)
        if x.image is not None and x.image.kind != Kind.FLOATS:
            raise NotNative("a pool of signs")
        step = Step(StepKind.WINDOW, c.layer, input=c.stored(x), geometry=lay, reduce=reduce)
        if reduce == Reduce.SUM:
            step.divisor = _divisor(node, lay, x)
        c.start(step, made)
        return made

    return handle


def _divisor(node: Node, lay: Geometry, x: Made) -> int:
    """What an average divides by; 0 for the number of pixels inside the image."""
    given = node.arguments.get("divisor_override")
    if given is not None:
        return int(number(given))
    overhangs = any(e > p for e, p in zip(lay.halo(*x.grid)[2:], lay.padding, strict=True))
    if overhangs and any(lay.padding):
        raise NotNative("an average pool pads and rounds its size up")
    counts_padding = bool(node.arguments.get("count_include_pad", True))
    return 0 if overhangs or (any(lay.padding) and not counts_padding) else math.prod(lay.kernel)


def adaptive_avg_pool2d(c: Compiler, node: Node) -> Made:
    """An average over the parts of an image, where all have the same size."""
    return _adaptive(c, node, pair(node.arguments["output_size"]), rank=2)


def adaptive_avg_pool1d(c: Compiler, node: Node) -> Made:
    """An average over the parts of a row."""
    return _adaptive(c, node, pair(node.arguments["output_size"], first=1), rank=1)


def _adaptive(c: Compiler, node: Node, out: tuple[int, int], *, rank: int) -> Made:
    x = c.as_grid(c.value(node.arguments["self"]))
    if any(n % o for n, o in zip(x.grid, out, strict=True)):
        raise NotNative("the windows of an adaptive pool differ in size")
    return _average(c, x, out, Made((x.channels, *out[2 - rank :]), parts=x.parts))


def adaptive_avg_pool3d(c: Compiler, node: Node) -> Made:
    """An average over all of a volume."""
    x = c.with_channels(c.value(node.arguments["self"]), last=False)
    out = node.arguments["output_size"]
    if any(size != 1 for size in (out if isinstance(out, tuple) else (out,))):
        raise NotNative("the average over parts of a volume")
    return _average(c, x, (1, 1), Made((x.channels, 1, 1, 1), parts=x.parts))


def mean(c: Compiler, node: Node) -> Made:
    """An average over all pixels."""
    x, dims = c.value(node.arguments["self"]), node.arguments["dim"]
    rank = len(x.shape) + 1
    given = {int(number(d)) % rank for d in dims} if isinstance(dims, tuple) else set()
    if rank > 2 and given in (set(range(2, rank)), set(range(1, rank - 1))):
        x = c.with_channels(x, last=given == set(range(1, rank - 1)))
    if given != set(range(1, rank)) - {x.axis} or node.arguments.get("dtype") is not None:
        raise NotNative("a mean is taken over other axes than the image's")
    keeps = bool(node.arguments.get("keepdim", False))
    one_pixel = tuple(d if axis == x.axis else 1 for axis, d in enumerate(x.shape, 1))
    made = Made(one_pixel, tokens=x.tokens, parts=x.parts) if keeps else Made((x.channels,), parts=x.parts)
    return _average(c, x, (1, 1), made)


def _average(c: Compiler, x: Made, out: tuple[int, int], made: Made) -> Made:
    kernel = (x.size[0] // out[0], x.size[1] // out[1])
    lay = Geometry(kernel, kernel, (1, 1), (0, 0), out)
    step = Step(StepKind.WINDOW, c.layer, input=c.stored(x), geometry=lay, reduce=Reduce.SUM, divisor=math.prod(kernel))
    c.start(step, made)
    return made
