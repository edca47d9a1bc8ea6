"""How each operator enters the plan: one function, one row."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bnnconvert.artifact.schema import Array
from bnnconvert.runtime.compile.compiler import (
    Compiler,
    Handler,
    Made,
    NotNative,
    geometry,
    number,
    padded_alike,
    pair,
)
from bnnconvert.runtime.compile.plan import (
    LANES,
    Code,
    Dot,
    Geometry,
    Image,
    Kind,
    Op,
    Reduce,
    Step,
    StepKind,
    per_channel,
)
from bnnconvert.values.program import Argument, Constant, Node, Value

NONE_INT = np.iinfo(np.int32).max


def encode(c: Compiler, node: Node) -> Made:
    """Bits: of accumulators by integer thresholds in the layer itself, else in the chain of the step that makes x."""
    x = c.value(node.arguments["x"])
    thresholds, start = c.tensor(node.arguments["thresholds"]), c.tensor(node.arguments["start"])
    assert thresholds is not None
    assert start is not None
    planes, _, levels = thresholds.shape
    bits = Image(Kind.BITS, x.channels, *x.size, planes=planes)
    made = Made((planes * x.channels, *x.shape[1:]), image=bits)
    rows = np.broadcast_to(thresholds, (planes, x.channels, levels))
    starts = np.broadcast_to(start, (planes, x.channels))
    step = x.step
    if step is not None and thresholds.dtype == np.int32 and (planes, levels) == (1, 1):
        if c.is_fresh(x, step):
            _take_thresholds(step, rows[0, :, 0], starts[0], bits)
            return made
        layer = _pooled_layer(c, x, step)
        if layer is not None:
            early = Image(Kind.BITS, x.channels, *layer.geometry.out if layer.geometry else ())
            _take_thresholds(layer, rows[0, :, 0], starts[0], early)
            falling = np.packbits(np.pad(starts[0], (0, -x.channels % 32)), bitorder="little")
            step.kind, step.input, step.output, step.weights = StepKind.POOL_BITS, early, bits, falling
            return made
    step = c.ending_with(x)
    none = NONE_INT if thresholds.dtype == np.int32 else np.inf
    # Nothing compares with a NaN: a threshold that stands for none must not count infinity either.
    values = np.where(rows == none, np.nan, rows.astype(np.float32)).transpose(0, 2, 1)
    padding = -x.channels % 16
    halves = np.packbits(np.pad(starts, ((0, 0), (0, padding))), axis=-1, bitorder="little").view("<u2")
    step.chain.append(Op(Code.ENCODE, bits, a=per_channel(values), start=halves, levels=levels))
    return made


def _take_thresholds(layer: Step, thresholds: Array, start: Array, bits: Image) -> None:
    """Let a binary layer compare its accumulators and write bits."""
    layer.thresholds, layer.start, layer.output = thresholds.copy(), start.astype(np.uint8), bits
    layer.chain.clear()


def _pooled_layer(c: Compiler, x: Made, pool: Step) -> Step | None:
    """The binary layer in front of a max-pool, if nothing but the pool needs its accumulators: bits can be pooled."""
    is_pool = pool.kind == StepKind.WINDOW and pool.reduce == Reduce.MAX and not pool.chain
    if not is_pool or c.top[pool] is not x or c.is_used_later(x):
        return None
    readers = [s for s in c.steps if s.input is pool.input or any(op.image is pool.input for op in s.chain)]
    layer = readers[0]
    stores_only = len(layer.chain) == 1 and layer.chain[0].code == Code.STORE and layer.chain[0].image is pool.input
    is_binary = layer.kind == StepKind.CONV and layer.dot == Dot.BINARY and layer.thresholds is None
    fills_blocks = layer.groups == 1 or x.channels // layer.groups % LANES == 0
    is_sum = layer.weight_planes == 1 and layer.input is not None and layer.input.planes == 1
    ours = [name for name, m in c.made.items() if m.image is pool.input]
    is_free = len(readers) == 2 and not any(c.uses[name] for name in ours)
    return layer if stores_only and is_binary and fills_blocks and is_sum and is_free else None


def binary_conv2d(c: Compiler, node: Node) -> Made:
    """A convolution of bits."""
    a = node.arguments
    bits = c.value(a["bits"]).image
    weight = c.tensor(a["weight"])
    assert bits is not None
    assert weight is not None
    channels, groups, zero = int(number(a["in_channels"])), int(number(a["groups"])), a["pad_bit"] == "zero"
    if groups > 1 and channels // groups % 32 and math.prod(pair(a["kernel"])) * -(-channels // groups // 32) > 512:
        raise NotNative("the windows of a group are too large")
    lay = geometry(node, pair(a["kernel"]), (bits.height, bits.width))
    _pad(bits, lay, ones=not zero)
    return _binary(c, bits, weight, lay, groups=groups, pads_zero=zero)


def binary_linear(c: Compiler, node: Node) -> Made:
    """A linear layer of bits."""
    x, weight = c.value(node.arguments["bits"]), c.tensor(node.arguments["weight"])
    assert x.image is not None
    assert weight is not None
    if len(x.shape) != 1:
        raise NotNative("a binary linear layer has rows of rows as input")
    return _binary(c, x.image, weight, _point(x.image), groups=1, pads_zero=True, rank=1)


def _binary(
    c: Compiler, bits: Image, weight: Array, lay: Geometry, *, groups: int, pads_zero: bool, rank: int = 3
) -> Made:
    planes, outputs, _ = weight.shape
    step = Step(
        StepKind.CONV,
        c.layer,
        input=bits,
        geometry=lay,
        dot=Dot.BINARY,
        groups=groups,
        weight_planes=planes,
        pads_zero=pads_zero,
        weights=weight,
    )
    made = Made((bits.planes * planes * outputs, *lay.out)[:rank])
    c.start(step, made)
    return made


def quantize(c: Compiler, node: Node) -> Made:
    """Bytes, which the way in or the chain of the step that makes the number writes."""
    x = c.value(node.arguments["x"])
    factor = number(node.arguments["factor"])
    source = next((s for s in c.steps if s.kind == StepKind.INPUT and s.output is x.image), None)
    if source is not None and not c.is_read(x.image) and not c.is_used_later(x):
        source.output, source.factor = Image(Kind.BYTES, x.channels, *x.size), factor
        return Made(x.shape, image=source.output)
    step = c.ending_with(x)
    image = Image(Kind.BYTES, x.channels, *x.size)
    step.chain.append(Op(Code.QUANTIZE, image, low=factor))
    return Made(x.shape, image=image)


def int8_conv2d(c: Compiler, node: Node) -> Made:
    """A convolution of bytes."""
    x, weight = c.value(node.arguments["x"]), c.tensor(node.arguments["weight"])
    assert weight is not None
    assert x.image is not None
    groups = int(number(node.arguments["groups"]))
    if groups > 1 and weight.shape[1] % 4:
        raise NotNative("groups of bytes that do not fill words")
    lay = geometry(node, (weight.shape[2], weight.shape[3]), x.size)
    _pad(x.image, lay, ones=False)
    return _bytes(c, x.image, weight.transpose(0, 2, 3, 1), lay, groups=groups, rank=3)


def int8_linear(c: Compiler, node: Node) -> Made:
    """A linear layer of bytes."""
    x, weight = c.value(node.arguments["x"]), c.tensor(node.arguments["weight"])
    assert weight is not None
    assert x.image is not None
    if len(x.shape) != 1:
        raise NotNative("a linear layer has rows of rows as input")
    return _bytes(c, x.image, weight, _point(x.image), groups=1, rank=1)


def _bytes(c: Compiler, image: Image, weight: Array, lay: Geometry, *, groups: int, rank: int) -> Made:
    rows = np.ascontiguousarray(weight)
    step = Step(StepKind.CONV, c.layer, input=image, geometry=lay, dot=Dot.BYTES, groups=groups, weights=rows)
    made = Made((len(rows), *lay.out)[:rank])
    c.start(step, made)
    return made


def affine(c: Compiler, node: Node) -> Made:
    """A scaled sum of accumulator planes."""
    acc = c.value(node.arguments["acc"])
    scale, bias = c.tensor(node.arguments["scale"]), c.tensor(node.arguments["bias"])
    assert scale is not None
    if int(number(node.arguments["axis"])) % (len(acc.shape) + 1) != 1:
        raise NotNative("the channels of an affine operation lie on another axis than the second")
    if len(scale) == 1:
        return _affine(c, acc, scale[0], 0.0 if bias is None else bias)
    step = acc.step
    if step is None or step.input is None or step.dot != Dot.BINARY or step.kind != StepKind.CONV:
        raise NotNative("a sum of planes that are no accumulators")
    if (
        c.top[step] is not acc
        or step.chain
        or c.is_used_later(acc)
        or len(scale) != step.input.planes * step.weight_planes
    ):
        raise NotNative("accumulators of several planes are used other than by their sum")
    step.scale = per_channel(scale)
    made = Made((scale.shape[1], *acc.shape[1:]), step=step)
    c.top[step] = made
    return made if bias is None else _affine(c, made, 1.0, bias)


def _affine(c: Compiler, before: Made, a: Array | float, b: Array | float) -> Made:
    full = [per_channel(np.broadcast_to(np.asarray(v, np.float64).reshape(-1), (before.channels,))) for v in (a, b)]
    return c.extended(before, Op(Code.AFFINE, a=full[0], b=full[1]))


def conv2d(c: Compiler, node: Node) -> Made:
    """A float convolution of images."""
    x, weight = c.value(node.arguments["input"]), c.tensor(node.arguments["weight"])
    assert weight is not None
    lay = padded_alike if isinstance(node.arguments.get("padding"), str) else geometry
    return _convolved(c, node, x, weight, lay(node, (weight.shape[2], weight.shape[3]), x.size))


def conv1d(c: Compiler, node: Node) -> Made:
    """A float convolution of rows, which are images of one line."""
    x, weight = c.value(node.arguments["input"]), c.tensor(node.arguments["weight"])
    assert weight is not None
    lay = geometry(node, (1, weight.shape[2]), x.size, rank=1)
    return _convolved(c, node, x, weight[:, :, None], lay)


def _convolved(c: Compiler, node: Node, x: Made, weight: Array, lay: Geometry) -> Made:
    """A depthwise convolution is a window."""
    a = node.arguments
    bias, groups = c.tensor(a.get("bias")), int(number(a.get("groups", 1)))
    outputs, per_group = weight.shape[:2]
    if per_group * groups != x.channels or outputs % groups:
        raise NotNative("the channels of a convolution do not fit its weight")
    image = c.stored(x)
    made = Made((outputs, *lay.out) if len(x.shape) == 3 else (outputs, lay.out[1]))
    if groups == x.channels == outputs and groups > 1:
        rows = per_channel(weight.reshape(outputs, -1).T)
        step = Step(StepKind.WINDOW, c.layer, input=image, geometry=lay, reduce=Reduce.WEIGHTED, weights=rows)
    else:
        _pad(image, lay, ones=False)
        rows = np.ascontiguousarray(weight.transpose(0, 2, 3, 1), np.float32)
        step = Step(StepKind.CONV, c.layer, input=image, geometry=lay, groups=groups, weights=rows)
    c.start(step, made)
    return _with_bias(c, made, bias)


def linear(c: Compiler, node: Node) -> Made:
    """A float linear layer."""
    a = node.arguments
    weight, bias = c.tensor(a["weight"]), c.tensor(a.get("bias"))
    assert weight is not None
    rows = np.ascontiguousarray(weight, np.float32)
    return _with_bias(c, _linear(c, c.value(a["input"]), rows, len(weight), weight.shape[1], Dot.FLOAT), bias)


def _linear(c: Compiler, x: Made, weight: Array, outputs: int, inputs: int, dot: Dot) -> Made:
    if x.shape != (inputs,):
        raise NotNative("a linear layer has rows of rows as input")
    image, made = c.stored(x), Made((outputs,))
    c.start(Step(StepKind.CONV, c.layer, input=image, geometry=_point(image), weights=weight, dot=dot), made)
    return made


def signed_conv2d(c: Compiler, node: Node) -> Made:
    """A convolution of floats with ±1 filters."""
    a = node.arguments
    x, weight = c.value(a["x"]), c.tensor(a["weight"])
    assert weight is not None
    if len(weight) > 1:
        raise NotNative("several weight planes with float input")
    lay, image = geometry(node, pair(a["kernel"]), x.size), c.stored(x)
    _pad(image, lay, ones=a["pad_bit"] == "one")
    groups, made = int(number(a["groups"])), Made((weight.shape[1], *lay.out))
    step = Step(StepKind.CONV, c.layer, input=image, geometry=lay, dot=Dot.SIGNS, groups=groups, weights=weight)
    c.start(step, made)
    return made


def signed_linear(c: Compiler, node: Node) -> Made:
    """A linear layer of floats with ±1 rows."""
    weight = c.tensor(node.arguments["weight"])
    assert weight is not None
    if len(weight) > 1:
        raise NotNative("several weight planes with float input")
    inputs = int(number(node.arguments["in_features"]))
    return _linear(c, c.value(node.arguments["x"]), weight, weight.shape[1], inputs, Dot.SIGNS)


def _pad(image: Image, lay: Geometry, *, ones: bool) -> None:
    """Give an image the halo that windows read."""
    halo = lay.halo(image.height, image.width)
    if not any(halo):
        return
    if any(image.halo) and image.halo_of_ones != ones:
        raise NotNative("a value is padded with zeros for one layer and with ones for another")
    image.halo_of_ones = ones
    image.widen(*halo)


def _with_bias(c: Compiler, made: Made, bias: Array | None) -> Made:
    return made if bias is None else _affine(c, made, 1.0, bias)


def _point(image: Image) -> Geometry:
    one = (1, 1)
    return Geometry(one, one, one, (0, 0), (image.height, image.width))


def batch_norm(c: Compiler, node: Node) -> Made:
    """Batch norm with its running statistics, as one affine operation."""
    a = node.arguments
    mean, var = c.tensor(a["running_mean"]), c.tensor(a["running_var"])
    weight, bias = c.tensor(a["weight"]), c.tensor(a["bias"])
    if mean is None or var is None:
        raise NotNative("a batch norm without running statistics")
    factor = 1 / np.sqrt(var.astype(np.float64) + number(a["eps"]))
    if weight is not None:
        factor = factor * weight
    return _affine(c, c.value(a["input"]), factor, (0.0 if bias is None else bias) - mean * factor)


def clamp(low: float | str, high: float | str) -> Handler:
    """A bound is a number, or the name of the argument that gives it."""

    def handle(c: Compiler, node: Node) -> Made:
        bounds = []
        for bound, default in ((low, -math.inf), (high, math.inf)):
            given = node.arguments.get(bound, _HARDTANH.get(bound)) if isinstance(bound, str) else bound
            bounds.append(default if given is None else number(given))
        return c.extended(c.value(node.arguments["self"]), Op(Code.CLAMP, low=bounds[0], high=bounds[1]))

    return handle


_HARDTANH = {"min_val": -1.0, "max_val": 1.0}


def unary(code: Code) -> Handler:
    """An operation on each number."""
    return lambda c, node: c.extended(c.value(node.arguments["self"]), Op(code))


def gelu(c: Compiler, node: Node) -> Made:
    """GELU, exact or by tanh."""
    code = Code.GELU_TANH if node.arguments.get("approximate", "none") == "tanh" else Code.GELU
    return c.extended(c.value(node.arguments["self"]), Op(code))


def prelu(c: Compiler, node: Node) -> Made:
    """PReLU with a slope per channel or one for all."""
    slope = c.tensor(node.arguments["weight"])
    assert slope is not None
    return _prelu(c, node, slope)


def leaky_relu(c: Compiler, node: Node) -> Made:
    """A PReLU with a fixed slope."""
    return _prelu(c, node, np.asarray(number(node.arguments.get("negative_slope", 0.01))))


def _prelu(c: Compiler, node: Node, slope: Array) -> Made:
    x = c.value(node.arguments["self"])
    return c.extended(x, Op(Code.PRELU, a=per_channel(np.broadcast_to(slope.reshape(-1), (x.channels,)))))


def arithmetic(name: str) -> Handler:
    """Addition, subtraction, multiplication and division, of two values or of a value and a constant."""

    def handle(c: Compiler, node: Node) -> Made:
        alpha = number(node.arguments.get("alpha", 1))
        left, right = (_operand(c, node.arguments[side]) for side in ("self", "other"))
        if left.constant is None and right.constant is None:
            return _two_values(c, name, left, right, alpha)
        if right.constant is not None and left.constant is None:
            k = _channelwise(right.constant, left.shape)
            if name == "div" and not k.all():
                raise NotNative("a value is divided by zero")
            return _affine(c, left, *_ON_THE_RIGHT[name](k, alpha))
        if left.constant is not None and right.constant is None and name != "div":
            return _affine(c, right, *_ON_THE_LEFT[name](_channelwise(left.constant, right.shape), alpha))
        raise NotNative(f"a constant stands on the wrong side of a {name}")

    return handle


Line = tuple[Array | float, Array | float]
"""a and b of a x + b."""

_ON_THE_RIGHT: Mapping[str, Callable[[Array, float], Line]] = {
    "add": lambda k, alpha: (1.0, alpha * k),
    "sub": lambda k, alpha: (1.0, -alpha * k),
    "mul": lambda k, _: (k, 0.0),
    "div": lambda k, _: (1 / k, 0.0),
}
_ON_THE_LEFT: Mapping[str, Callable[[Array, float], Line]] = {
    "add": lambda k, alpha: (alpha, k),
    "sub": lambda k, alpha: (-alpha, k),
    "mul": lambda k, _: (k, 0.0),
}


def _operand(c: Compiler, argument: Argument) -> Made:
    if isinstance(argument, Value | Constant):
        return c.value(argument)
    return Made((), constant=np.asarray(number(argument)))


def _two_values(c: Compiler, name: str, left: Made, right: Made, alpha: float) -> Made:
    """The operand that is made last takes the other one into its chain."""
    if name == "div":
        raise NotNative("a value is divided by another")
    joins_left = c.order(left) >= c.order(right)
    if left.shape != right.shape:
        joins_left = math.prod(left.shape) > math.prod(right.shape)
        large, small = (left, right) if joins_left else (right, left)
        is_pixel_gain = name == "mul" and small.channels == 1 and small.shape[1:] == large.shape[1:]
        if is_pixel_gain:
            return c.extended(large, Op(Code.GAIN, c.stored(small)))
        if small.channels != large.channels or math.prod(small.size) != 1 or len(small.shape) != len(large.shape):
            raise NotNative(f"operands have the shapes {left.shape} and {right.shape}")
    base, other = (left, right) if joins_left else (right, left)
    image = c.stored(other)
    if name == "mul":
        return c.extended(base, Op(Code.MULTIPLY, image))
    sign = -alpha if name == "sub" else alpha
    if joins_left:
        return c.extended(base, Op(Code.ADD, image, low=sign))
    scaled = base if sign == 1.0 else _affine(c, base, sign, 0.0)
    return c.extended(scaled, Op(Code.ADD, image, low=1.0))


def _channelwise(constant: Array, shape: tuple[int, ...]) -> Array:
    """A constant operand per channel, if it varies over channels only."""
    array = np.asarray(constant, np.float64)
    if array.size == 1:
        return array.reshape(-1)
    if array.ndim > len(shape) + 1:
        raise NotNative("a constant operand has more axes than the value")
    full = array.reshape((1,) * (len(shape) + 1 - array.ndim) + array.shape)
    if full.shape[0] != 1 or full.shape[1] != shape[0] or any(n != 1 for n in full.shape[2:]):
        raise NotNative("a constant operand varies over more than the channels")
    return full.reshape(-1)


def pool(reduce: Reduce, rank: int = 2) -> Handler:
    """A pool over windows of images, or with rank 1 of rows."""

    def handle(c: Compiler, node: Node) -> Made:
        a = node.arguments
        x = c.value(a["self"])
        kernel = pair(a["kernel_size"], first=1 if rank == 1 else None)
        lay = geometry(node, kernel, x.size, stride=kernel, rank=rank)
        made = Made((x.channels, *lay.out[2 - rank :]))
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
    overhangs = any(e > p for e, p in zip(lay.halo(*x.size)[2:], lay.padding, strict=True))
    if overhangs and any(lay.padding):
        raise NotNative("an average pool pads and rounds its size up")
    counts_padding = bool(node.arguments.get("count_include_pad", True))
    return 0 if overhangs or (any(lay.padding) and not counts_padding) else math.prod(lay.kernel)


def adaptive_avg_pool2d(c: Compiler, node: Node) -> Made:
    """An average over the parts of an image, where all have the same size."""
    x = c.value(node.arguments["self"])
    out = pair(node.arguments["output_size"])
    if any(n % o for n, o in zip(x.size, out, strict=True)):
        raise NotNative("the windows of an adaptive pool differ in size")
    return _average(c, x, out, (x.channels, *out))


def mean(c: Compiler, node: Node) -> Made:
    """An average over both axes of an image."""
    x, dims = c.value(node.arguments["self"]), node.arguments["dim"]
    rank = len(x.shape) + 1
    given = {int(number(d)) % rank for d in dims} if isinstance(dims, tuple) else set()
    if given != set(range(2, rank)) or node.arguments.get("dtype") is not None:
        raise NotNative("a mean is taken over other axes than the image's")
    keeps = bool(node.arguments.get("keepdim", False))
    return _average(c, x, (1, 1), (x.channels, *(1,) * (rank - 2 if keeps else 0)))


def _average(c: Compiler, x: Made, out: tuple[int, int], shape: tuple[int, ...]) -> Made:
    kernel = (x.size[0] // out[0], x.size[1] // out[1])
    lay = Geometry(kernel, kernel, (1, 1), (0, 0), out)
    step = Step(StepKind.WINDOW, c.layer, input=c.stored(x), geometry=lay, reduce=Reduce.SUM, divisor=math.prod(kernel))
    made = Made(shape)
    c.start(step, made)
    return made


def reshape(c: Compiler, node: Node) -> Made:
    """Another shape for the same numbers: nothing to do where channels and image stay, else a copy."""
    x, declared = c.value(node.arguments["self"]), node.outputs[0].shape
    wanted = node.arguments.get("shape", node.arguments.get("size"))
    if isinstance(wanted, tuple) and not _names(wanted, declared):
        raise NotNative(f"{wanted} is no way to write the shape {declared}")
    if x.constant is not None:
        sizes = [d for d in declared if isinstance(d, int)]
        if len(sizes) < len(declared) or math.prod(sizes) != x.constant.size:
            raise NotNative("a constant takes a shape that depends on the batch")
        return Made(tuple(sizes), constant=x.constant.reshape(sizes))
    shape = tuple(d for d in declared[1:] if isinstance(d, int))
    if math.prod(shape) != math.prod(x.shape) or not 1 <= len(shape) <= 3:
        raise NotNative(f"the shape {x.shape} becomes {shape}")
    after = Made(shape)
    if x.image is not None and x.image.kind != Kind.FLOATS:
        raise NotNative("bits take another shape")
    if x.channels == after.channels and x.size == after.size and not c.is_used_later(x):
        after.step, after.image = x.step, x.image
        if x.step is not None and c.top.get(x.step) is x:
            c.top[x.step] = after
        return after
    after.image = Image(Kind.FLOATS, after.channels, *after.size)
    c.steps.append(Step(StepKind.COPY, c.layer, input=c.stored(x), output=after.image))
    return after


def _names(wanted: Sequence[Argument], declared: Sequence[Argument]) -> bool:
    """Whether the sizes that a node asks for are those that it declares; one of them may be -1."""
    same = [w in (-1, d) for w, d in zip(wanted, declared, strict=False)]
    return len(wanted) == len(declared) and all(same) and wanted.count(-1) <= 1


def softmax(*, logarithm: bool) -> Handler:
    """Softmax over the channels, or its logarithm."""

    def handle(c: Compiler, node: Node) -> Made:
        x = c.value(node.arguments["self"])
        axis = int(number(node.arguments["dim"])) % (len(x.shape) + 1)
        if axis != 1 or node.arguments.get("dtype") is not None:
            raise NotNative("a softmax over another axis than the channels")
        made = Made(x.shape, image=Image(Kind.FLOATS, x.channels, *x.size))
        c.steps.append(Step(StepKind.SOFTMAX, c.layer, input=c.stored(x), output=made.image, logarithm=logarithm))
        return made

    return handle


def cat(c: Compiler, node: Node) -> Made:
    """Values side by side on the channel axis."""
    parts = node.arguments["tensors"]
    assert isinstance(parts, tuple)
    operands = [c.value(argument) for argument in parts]
    first = operands[0]
    axis = int(number(node.arguments.get("dim", 0))) % (len(first.shape) + 1)
    if axis != 1 or any(x.constant is not None or x.shape[1:] != first.shape[1:] for x in operands):
        raise NotNative("a concatenation along another axis than the channels")
    made = Made((sum(x.channels for x in operands), *first.shape[1:]))
    made.image, channel = Image(Kind.FLOATS, made.channels, *made.size), 0
    for x in operands:
        c.ending_with(x).chain.append(Op(Code.STORE, made.image, channel=channel))
        channel += x.channels
    return made


HANDLERS: Mapping[str, Handler] = {
    "bnnconvert.encode": encode,
    "bnnconvert.binary_conv2d": binary_conv2d,
    "bnnconvert.binary_linear": binary_linear,
    "bnnconvert.signed_conv2d": signed_conv2d,
    "bnnconvert.signed_linear": signed_linear,
    "bnnconvert.quantize": quantize,
    "bnnconvert.int8_conv2d": int8_conv2d,
    "bnnconvert.int8_linear": int8_linear,
    "bnnconvert.affine": affine,
    "aten.conv1d.default": conv1d,
    "aten.conv2d.default": conv2d,
    "aten.conv2d.padding": conv2d,
    "aten.linear.default": linear,
    "aten.batch_norm.default": batch_norm,
    "aten.relu.default": clamp(0.0, math.inf),
    "aten.relu6.default": clamp(0.0, 6.0),
    "aten.hardtanh.default": clamp("min_val", "max_val"),
    "aten.clamp.default": clamp("min", "max"),
    "aten.clamp_min.default": clamp("min", math.inf),
    "aten.clamp_max.default": clamp(-math.inf, "max"),
    "aten.prelu.default": prelu,
    "aten.leaky_relu.default": leaky_relu,
    "aten.gelu.default": gelu,
    "aten.exp.default": unary(Code.EXP),
    "aten.sigmoid.default": unary(Code.SIGMOID),
    "aten.tanh.default": unary(Code.TANH),
    "aten.silu.default": unary(Code.SILU),
    "aten.hardsigmoid.default": unary(Code.HARDSIGMOID),
    "aten.hardswish.default": unary(Code.HARDSWISH),
    "aten.sqrt.default": unary(Code.SQRT),
    "aten.reciprocal.default": unary(Code.RECIPROCAL),
    "aten.abs.default": unary(Code.ABS),
    "aten.neg.default": lambda c, node: _affine(c, c.value(node.arguments["self"]), -1.0, 0.0),
    "aten.square.default": unary(Code.SQUARE),
    "aten.add.Tensor": arithmetic("add"),
    "aten.add.Scalar": arithmetic("add"),
    "aten.sub.Tensor": arithmetic("sub"),
    "aten.sub.Scalar": arithmetic("sub"),
    "aten.mul.Tensor": arithmetic("mul"),
    "aten.mul.Scalar": arithmetic("mul"),
    "aten.div.Tensor": arithmetic("div"),
    "aten.div.Scalar": arithmetic("div"),
    "aten.max_pool1d.default": pool(Reduce.MAX, 1),
    "aten.max_pool2d.default": pool(Reduce.MAX),
    "aten.avg_pool1d.default": pool(Reduce.SUM, 1),
    "aten.avg_pool2d.default": pool(Reduce.SUM),
    "aten.adaptive_avg_pool2d.default": adaptive_avg_pool2d,
    "aten.mean.dim": mean,
    "aten.reshape.default": reshape,
    "aten.view.default": reshape,
    "aten.flatten.using_ints": reshape,
    "aten.squeeze.dims": reshape,
    "aten.softmax.int": softmax(logarithm=False),
    "aten.log_softmax.int": softmax(logarithm=True),
    "aten.cat.default": cat,
    "aten.concat.default": cat,
}
"""Operators that the engine runs."""
