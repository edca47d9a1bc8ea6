"""How each operator enters the plan: one function, one row."""

import math
from collections.abc import Callable, Mapping

import numpy as np

from bnnconvert.artifact.schema import Array
from bnnconvert.runtime.compile.compiler import Compiler, Handler, Made, NotNative, geometry, number, pair
from bnnconvert.runtime.compile.plan import Code, Dot, Geometry, Image, Kind, Op, Reduce, Step, StepKind, per_channel
from bnnconvert.values.program import Batch, Constant, Node, Value

NONE_INT = np.iinfo(np.int32).max


def encode(c: Compiler, node: Node, shape: tuple[int, ...]) -> Made:
    x = c.value(node.arguments["x"])
    thresholds, start = c.tensor(node.arguments["thresholds"]), c.tensor(node.arguments["start"])
    assert thresholds is not None and start is not None
    planes, _, levels = thresholds.shape
    bits = Image(Kind.BITS, x.channels, *x.size, planes=planes)
    made = Made(shape, image=bits)
    rows = np.broadcast_to(thresholds, (planes, x.channels, levels))
    starts = np.broadcast_to(start, (planes, x.channels))
    step = x.step
    is_accumulator = thresholds.dtype == np.int32 and step is not None and step.dot == Dot.BINARY and not step.chain
    fills_blocks = step is not None and (step.groups == 1 or step.outputs // step.groups % 16 == 0)
    if is_accumulator and fills_blocks and (planes, levels) == (1, 1) and not c.is_used_later(x) and c.top[step] is x:
        step.thresholds, step.start, step.output = rows[0, :, 0].copy(), starts[0].astype(np.uint8), bits
        return made
    if step is None or c.top[step] is not x:
        step = Step(StepKind.MAP, c.layer, input=c.stored(x), channels=x.channels)
        c.start(step, Made(x.shape))
    none = NONE_INT if thresholds.dtype == np.int32 else np.inf
    # Nothing compares with a NaN: a threshold that stands for none must not count infinity either.
    values = np.where(rows == none, np.nan, rows.astype(np.float32)).transpose(0, 2, 1)
    padding = -x.channels % 16
    halves = np.packbits(np.pad(starts, ((0, 0), (0, padding))), axis=-1, bitorder="little").view("<u2")
    step.chain.append(Op(Code.ENCODE, bits, a=per_channel(values), start=halves, levels=levels))
    return made


def binary_conv2d(c: Compiler, node: Node, shape: tuple[int, ...]) -> Made:
    a = node.arguments
    bits = c.value(a["bits"]).image
    weight = c.tensor(a["weight"])
    assert bits is not None and weight is not None
    channels, groups, zero = int(number(a["in_channels"])), int(number(a["groups"])), a["pad_bit"] == "zero"
    if groups > 1 and channels // groups % 32 and math.prod(pair(a["kernel"])) * -(-channels // groups // 32) > 512:
        raise NotNative("the windows of a group are too large")
    lay = geometry(node, pair(a["kernel"]), (bits.height, bits.width))
    _pad(bits, lay, ones=not zero)
    return _binary(c, shape, bits, weight, lay, groups=groups, pads_zero=zero)


def binary_linear(c: Compiler, node: Node, shape: tuple[int, ...]) -> Made:
    bits, weight = c.value(node.arguments["bits"]).image, c.tensor(node.arguments["weight"])
    assert bits is not None and weight is not None
    if len(shape) != 1:
        raise NotNative("a binary linear layer has rows of rows as input")
    return _binary(c, shape, bits, weight, _point(bits), groups=1, pads_zero=True)


def _binary(c: Compiler, shape: tuple[int, ...], bits: Image, weight: Array, lay: Geometry, *, groups: int, pads_zero: bool) -> Made:
    planes, outputs, _ = weight.shape
    step = Step(
        StepKind.CONV, c.layer, input=bits, geometry=lay, dot=Dot.BINARY, outputs=outputs, channels=outputs,
        groups=groups, weight_planes=planes, pads_zero=pads_zero, weights=weight,
    )
    made = Made(shape)
    c.start(step, made)
    return made


def affine(c: Compiler, node: Node, shape: tuple[int, ...]) -> Made:
    acc = c.value(node.arguments["acc"])
    scale, bias = c.tensor(node.arguments["scale"]), c.tensor(node.arguments["bias"])
    assert scale is not None
    made = Made(shape)
    if len(scale) == 1:
        _affine(c, acc, made, scale[0], 0.0 if bias is None else bias)
        return made
    step = acc.step
    if step is None or c.top[step] is not acc or step.chain or c.is_used_later(acc):
        raise NotNative("accumulators of several planes are used other than by their sum")
    step.scale = per_channel(scale)
    made.step, c.top[step] = step, made
    if bias is not None:
        after = Made(shape)
        _affine(c, made, after, 1.0, bias)
        return after
    return made


def _affine(c: Compiler, before: Made, after: Made, a: Array | float, b: Array | float) -> None:
    full = [per_channel(np.broadcast_to(np.asarray(v, np.float64).reshape(-1), (before.channels,))) for v in (a, b)]
    c.extend(before, Op(Code.AFFINE, a=full[0], b=full[1]), after)


def conv2d(c: Compiler, node: Node, shape: tuple[int, ...]) -> Made:
    a = node.arguments
    x, weight, bias = c.value(a["input"]), c.tensor(a["weight"]), c.tensor(a.get("bias"))
    assert weight is not None
    if isinstance(a.get("padding"), str):
        raise NotNative("a convolution pads to the same size")
    groups = int(a.get("groups", 1))
    image = c.stored(x)
    outputs, per_group = weight.shape[:2]
    lay = geometry(node, (weight.shape[2], weight.shape[3]), x.size)
    made = Made(shape)
    if groups == x.channels == outputs and groups > 1:
        rows = weight.reshape(outputs, -1).T
        step = Step(StepKind.WINDOW, c.layer, input=image, geometry=lay, channels=outputs, reduce=Reduce.WEIGHTED, weights=per_channel(rows))
    else:
        _pad(image, lay, ones=False)
        rows = np.ascontiguousarray(weight.transpose(0, 2, 3, 1), np.float32)
        step = Step(StepKind.CONV, c.layer, input=image, geometry=lay, outputs=outputs, channels=outputs, groups=groups, weights=rows)
    c.start(step, made)
    return _with_bias(c, made, bias)


def linear(c: Compiler, node: Node, shape: tuple[int, ...]) -> Made:
    a = node.arguments
    x, weight, bias = c.value(a["input"]), c.tensor(a["weight"]), c.tensor(a.get("bias"))
    assert weight is not None
    return _with_bias(c, _linear(c, x, shape, np.ascontiguousarray(weight, np.float32), signed=False), bias)


def _linear(c: Compiler, x: Made, shape: tuple[int, ...], weight: Array, *, signed: bool) -> Made:
    if len(x.shape) != 1:
        raise NotNative("a linear layer has rows of rows as input")
    image, made = c.stored(x), Made(shape)
    c.start(
        Step(StepKind.CONV, c.layer, input=image, geometry=_point(image), outputs=shape[0], channels=shape[0], weights=weight, signed=signed),
        made,
    )
    return made


def signed_conv2d(c: Compiler, node: Node, shape: tuple[int, ...]) -> Made:
    a = node.arguments
    x, weight = c.value(a["x"]), c.tensor(a["weight"])
    assert weight is not None
    planes, outputs, _ = weight.shape
    groups = int(a["groups"])
    lay = geometry(node, pair(a["kernel"]), x.size)
    if planes > 1:
        raise NotNative("several weight planes with float input")
    image, made = c.stored(x), Made(shape)
    _pad(image, lay, ones=a["pad_bit"] == "one")
    c.start(
        Step(StepKind.CONV, c.layer, input=image, geometry=lay, outputs=outputs, channels=outputs, groups=groups, weights=weight, signed=True),
        made,
    )
    return made


def signed_linear(c: Compiler, node: Node, shape: tuple[int, ...]) -> Made:
    weight = c.tensor(node.arguments["weight"])
    assert weight is not None
    if len(weight) > 1:
        raise NotNative("several weight planes with float input")
    return _linear(c, c.value(node.arguments["x"]), shape, weight, signed=True)


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
    if bias is None:
        return made
    after = Made(made.shape)
    _affine(c, made, after, 1.0, bias)
    return after


def _point(image: Image) -> Geometry:
    one = (1, 1)
    return Geometry(one, one, one, (0, 0), (image.height, image.width))


def batch_norm(c: Compiler, node: Node, shape: tuple[int, ...]) -> Made:
    a = node.arguments
    x, mean, var = c.value(a["input"]), c.tensor(a["running_mean"]), c.tensor(a["running_var"])
    weight, bias = c.tensor(a["weight"]), c.tensor(a["bias"])
    if mean is None or var is None:
        raise NotNative("a batch norm without running statistics")
    factor = 1 / np.sqrt(var.astype(np.float64) + number(a["eps"]))
    if weight is not None:
        factor = factor * weight
    made = Made(shape)
    _affine(c, x, made, factor, (0.0 if bias is None else bias) - mean * factor)
    return made


def clamp(low: float | str, high: float | str) -> Handler:
    def handle(c: Compiler, node: Node, shape: tuple[int, ...]) -> Made:
        bounds = []
        for bound, default in ((low, -math.inf), (high, math.inf)):
            given = node.arguments.get(bound, _TANH_BOUNDS.get(bound)) if isinstance(bound, str) else bound
            bounds.append(default if given is None else number(given))
        made = Made(shape)
        c.extend(c.value(node.arguments["self"]), Op(Code.CLAMP, low=bounds[0], high=bounds[1]), made)
        return made

    return handle


_TANH_BOUNDS = {"min_val": -1.0, "max_val": 1.0}


def unary(code: Code) -> Handler:
    def handle(c: Compiler, node: Node, shape: tuple[int, ...]) -> Made:
        made = Made(shape)
        c.extend(c.value(node.arguments["self"]), Op(code), made)
        return made

    return handle


def gelu(c: Compiler, node: Node, shape: tuple[int, ...]) -> Made:
    made = Made(shape)
    code = Code.GELU_TANH if node.arguments.get("approximate", "none") == "tanh" else Code.GELU
    c.extend(c.value(node.arguments["self"]), Op(code), made)
    return made


def prelu(c: Compiler, node: Node, shape: tuple[int, ...]) -> Made:
    slope = c.tensor(node.arguments["weight"])
    return _prelu(c, node, shape, slope)


def leaky_relu(c: Compiler, node: Node, shape: tuple[int, ...]) -> Made:
    return _prelu(c, node, shape, np.float32(number(node.arguments.get("negative_slope", 0.01))))


def _prelu(c: Compiler, node: Node, shape: tuple[int, ...], slope: Array | np.float32 | None) -> Made:
    made, x = Made(shape), c.value(node.arguments["self"])
    full = np.broadcast_to(np.asarray(slope, np.float32).reshape(-1), (x.channels,))
    c.extend(x, Op(Code.PRELU, a=per_channel(full)), made)
    return made


def arithmetic(name: str) -> Handler:
    """Addition, subtraction, multiplication and division, of two values or a value and a constant."""

    def handle(c: Compiler, node: Node, shape: tuple[int, ...]) -> Made:
        alpha = number(node.arguments.get("alpha", 1))
        first, second = node.arguments["self"], node.arguments["other"]
        operands = [
            c.value(argument) if isinstance(argument, Value | Constant) else Made((), constant=np.float32(number(argument)))
            for argument in (first, second)
        ]
        made = Made(shape)
        left, right = operands
        if left.constant is not None and right.constant is not None:
            raise NotNative("two constants are combined")
        if right.constant is not None:
            k = _channelwise(right.constant, shape)
            factor, summand = {"add": (1.0, alpha * k), "sub": (1.0, -alpha * k), "mul": (k, 0.0), "div": (1 / k, 0.0)}[name]
            _affine(c, left, made, factor, summand)
            return made
        if left.constant is not None:
            k = _channelwise(left.constant, shape)
            if name == "div":
                raise NotNative("a constant is divided by a value")
            factor, summand = {"add": (alpha, k), "sub": (-alpha, k), "mul": (k, 0.0)}[name]
            _affine(c, right, made, factor, summand)
            return made
        return _two(c, name, left, right, alpha, made)

    return handle


def _two(c: Compiler, name: str, left: Made, right: Made, alpha: float, made: Made) -> Made:
    if name == "div":
        raise NotNative("a value is divided by another")
    sign = -alpha if name == "sub" else alpha
    joins_left = c.order(left) >= c.order(right)
    if left.shape != right.shape:
        joins_left = math.prod(left.shape) > math.prod(right.shape)
        small = right if joins_left else left
        if small.channels != made.channels or math.prod(small.size) != 1:
            raise NotNative(f"operands have the shapes {left.shape} and {right.shape}")
    base, other = (left, right) if joins_left else (right, left)
    image = c.stored(other)
    if name == "mul":
        c.extend(base, Op(Code.MULTIPLY, image), made)
    elif joins_left or sign == 1.0:
        c.extend(base, Op(Code.ADD, image, low=sign if joins_left else 1.0), made)
    else:
        scaled = Made(made.shape)
        _affine(c, base, scaled, sign, 0.0)
        c.extend(scaled, Op(Code.ADD, image, low=1.0), made)
    return made


def _channelwise(constant: Array, shape: tuple[int, ...]) -> Array:
    """A constant operand per channel, if it varies over channels only."""
    array = np.asarray(constant, np.float64)
    if array.size == 1:
        return array.reshape(-1)
    full = array.reshape((1,) * (len(shape) + 1 - array.ndim) + array.shape)
    if full.shape[0] != 1 or any(n != 1 for n in full.shape[2:]):
        raise NotNative("a constant operand varies over more than the channels")
    return full.reshape(-1)


def pool(reduce: Reduce) -> Handler:
    def handle(c: Compiler, node: Node, shape: tuple[int, ...]) -> Made:
        a = node.arguments
        x = c.value(a["self"])
        lay = geometry(node, pair(a["kernel_size"]), x.size, stride=None)
        made = Made(shape)
        if x.image is not None and x.image.kind == Kind.BITS:
            made.image = Image(Kind.BITS, x.channels, *lay.out, planes=x.image.planes)
            words = np.zeros(x.image.planes * -(-x.channels // 32), np.uint32)
            c.steps.append(Step(StepKind.POOL_BITS, c.layer, input=x.image, output=made.image, geometry=lay, weights=words))
            return made
        overhangs = any(lay.halo(*x.size)[2:])
        if overhangs and any(lay.padding) and a.get("ceil_mode") and reduce == Reduce.SUM:
            raise NotNative("an average pool pads and rounds its size up")
        counts_inside = (any(lay.padding) and not a.get("count_include_pad", True)) or (overhangs and not any(lay.padding))
        divisor = 0 if counts_inside else math.prod(lay.kernel)
        if a.get("divisor_override") is not None:
            divisor = int(number(a["divisor_override"]))
        step = Step(StepKind.WINDOW, c.layer, input=c.stored(x), geometry=lay, channels=x.channels, reduce=reduce, divisor=divisor if reduce == Reduce.SUM else 0)
        c.start(step, made)
        return made

    return handle


def adaptive_avg_pool2d(c: Compiler, node: Node, shape: tuple[int, ...]) -> Made:
    x = c.value(node.arguments["self"])
    out = pair(node.arguments["output_size"])
    if any(n % o for n, o in zip(x.size, out, strict=True)):
        raise NotNative("the windows of an adaptive pool differ in size")
    return _average(c, x, shape, out)


def mean(c: Compiler, node: Node, shape: tuple[int, ...]) -> Made:
    x, dims = c.value(node.arguments["self"]), node.arguments["dim"]
    wanted = set(range(2, len(x.shape) + 1))
    given = {int(d) % (len(x.shape) + 1) for d in dims} if isinstance(dims, tuple) else set()
    if given != wanted or node.arguments.get("dtype") is not None:
        raise NotNative("a mean is taken over other axes than the image's")
    return _average(c, x, shape, (1, 1))


def _average(c: Compiler, x: Made, shape: tuple[int, ...], out: tuple[int, int]) -> Made:
    kernel = (x.size[0] // out[0], x.size[1] // out[1])
    made = Made(shape)
    lay = Geometry(kernel, kernel, (1, 1), (0, 0), out)
    step = Step(StepKind.WINDOW, c.layer, input=c.stored(x), geometry=lay, channels=x.channels, reduce=Reduce.SUM, divisor=math.prod(kernel))
    c.start(step, made)
    return made


def reshape(c: Compiler, node: Node, shape: tuple[int, ...]) -> Made:
    x = c.value(node.arguments["self"])
    if x.constant is not None:
        sizes = node.arguments.get("shape", node.arguments.get("size"))
        if not isinstance(sizes, tuple) or any(isinstance(s, Batch) for s in sizes):
            raise NotNative("a constant takes a shape that depends on the batch")
        array = x.constant.reshape([int(s) for s in sizes if isinstance(s, int)])
        return Made(array.shape, constant=array)
    after = Made(shape)
    if x.channels == after.channels and x.size == after.size:
        after.step, after.image = x.step, x.image
        if x.step is not None and c.top.get(x.step) is x:
            c.top[x.step] = after
            if c.is_used_later(x):
                raise NotNative("a value is used under two shapes")
        return after
    if x.image is not None and x.image.kind == Kind.BITS:
        raise NotNative("bits are reshaped")
    after.image = Image(Kind.FLOATS, after.channels, *after.size)
    c.steps.append(Step(StepKind.COPY, c.layer, input=c.stored(x), output=after.image))
    return after


def softmax(logarithm: bool) -> Handler:
    def handle(c: Compiler, node: Node, shape: tuple[int, ...]) -> Made:
        x = c.value(node.arguments["self"])
        if int(number(node.arguments["dim"])) % (len(shape) + 1) != 1 or node.arguments.get("dtype") is not None:
            raise NotNative("a softmax over another axis than the channels")
        made = Made(shape, image=Image(Kind.FLOATS, x.channels, *x.size))
        c.steps.append(Step(StepKind.SOFTMAX, c.layer, input=c.stored(x), output=made.image, logarithm=logarithm))
        return made

    return handle


def cat(c: Compiler, node: Node, shape: tuple[int, ...]) -> Made:
    parts = node.arguments["tensors"]
    if not isinstance(parts, tuple) or int(number(node.arguments.get("dim", 0))) % (len(shape) + 1) != 1:
        raise NotNative("a concatenation along another axis than the channels")
    made = Made(shape)
    made.image = Image(Kind.FLOATS, shape[0], *made.size)
    channel = 0
    for argument in parts:
        x = c.value(argument)
        step = x.step
        if step is None or c.top[step] is not x:
            step = Step(StepKind.MAP, c.layer, input=c.stored(x), channels=x.channels)
            c.start(step, Made(x.shape))
        step.chain.append(Op(Code.STORE, made.image, channel=channel))
        channel += x.channels
    return made


HANDLERS: Mapping[str, Handler] = {
    "bnnconvert.encode": encode,
    "bnnconvert.binary_conv2d": binary_conv2d,
    "bnnconvert.binary_linear": binary_linear,
    "bnnconvert.signed_conv2d": signed_conv2d,
    "bnnconvert.signed_linear": signed_linear,
    "bnnconvert.affine": affine,
    "aten.conv2d.default": conv2d,
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
    "aten.square.default": unary(Code.SQUARE),
    "aten.add.Tensor": arithmetic("add"),
    "aten.add.Scalar": arithmetic("add"),
    "aten.sub.Tensor": arithmetic("sub"),
    "aten.sub.Scalar": arithmetic("sub"),
    "aten.mul.Tensor": arithmetic("mul"),
    "aten.mul.Scalar": arithmetic("mul"),
    "aten.div.Tensor": arithmetic("div"),
    "aten.div.Scalar": arithmetic("div"),
    "aten.max_pool2d.default": pool(Reduce.MAX),
    "aten.avg_pool2d.default": pool(Reduce.SUM),
    "aten.adaptive_avg_pool2d.default": adaptive_avg_pool2d,
    "aten.mean.dim": mean,
    "aten.reshape.default": reshape,
    "aten.view.default": reshape,
    "aten.flatten.using_ints": reshape,
    "aten.squeeze.dims": reshape,
    "aten.softmax.int": softmax(False),
    "aten.log_softmax.int": softmax(True),
    "aten.cat.default": cat,
    "aten.concat.default": cat,
}
"""Operators that the engine runs."""
