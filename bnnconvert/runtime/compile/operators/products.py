"""Convolutions and linear layers of bits, bytes and floats."""

import math

import numpy as np

from bnnconvert.artifact.schema import Array
from bnnconvert.runtime.compile.arguments import geometry, number, padded_alike, pair
from bnnconvert.runtime.compile.compiler import Compiler
from bnnconvert.runtime.compile.made import Made
from bnnconvert.runtime.compile.operators.affine import with_bias
from bnnconvert.runtime.compile.plan import Dot, Geometry, Image, NotNative, Reduce, Step, StepKind, per_channel
from bnnconvert.values.program import Node


def binary_conv2d(c: Compiler, node: Node) -> Made:
    """A convolution of bits."""
    a = node.arguments
    x = c.value(a["bits"])
    bits = x.image
    weight = c.tensor(a["weight"])
    assert bits is not None
    assert weight is not None
    channels, groups, zero = int(number(a["in_channels"])), int(number(a["groups"])), a["pad_bit"] == "zero"
    if groups > 1 and channels // groups % 32 and math.prod(pair(a["kernel"])) * -(-channels // groups // 32) > 512:
        raise NotNative("the windows of a group are too large")
    is_point = all(
        pair(a[name]) == pixels for name, pixels in (("kernel", (1, 1)), ("stride", (1, 1)), ("padding", (0, 0)))
    )
    lay = _point(bits) if is_point else geometry(node, pair(a["kernel"]), x.grid)
    _pad(bits, lay, ones=not zero)
    made = _binary(c, bits, weight, lay, groups=groups, pads_zero=zero)
    if is_point:  # which may lie in any way
        made.shape = (made.channels, *x.pixels)
        made.lying(x.size)
    return made


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
    made = Made((bits.planes * planes * outputs, *lay.out)[:rank], parts=bits.parts)
    c.start(step, made)
    return made


def int8_conv2d(c: Compiler, node: Node) -> Made:
    """A convolution of bytes."""
    x, weight = c.value(node.arguments["x"]), c.tensor(node.arguments["weight"])
    assert weight is not None
    assert x.image is not None
    groups = int(number(node.arguments["groups"]))
    if groups > 1 and weight.shape[1] % 4:
        raise NotNative("groups of bytes that do not fill words")
    lay = geometry(node, (weight.shape[2], weight.shape[3]), x.grid)
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
    made = Made((len(rows), *lay.out)[:rank], parts=image.parts)
    c.start(step, made)
    return made


def conv2d(c: Compiler, node: Node) -> Made:
    """A float convolution of images."""
    x, weight = c.as_grid(c.value(node.arguments["input"])), c.tensor(node.arguments["weight"])
    assert weight is not None
    lay = padded_alike if isinstance(node.arguments.get("padding"), str) else geometry
    return _convolved(c, node, x, weight, lay(node, (weight.shape[2], weight.shape[3]), x.grid))


def conv1d(c: Compiler, node: Node) -> Made:
    """A float convolution of rows, which are images of one line."""
    x, weight = c.as_grid(c.value(node.arguments["input"])), c.tensor(node.arguments["weight"])
    assert weight is not None
    lay = geometry(node, (1, weight.shape[2]), x.grid, rank=1)
    return _convolved(c, node, x, weight[:, :, None], lay)


def _convolved(c: Compiler, node: Node, x: Made, weight: Array, lay: Geometry) -> Made:
    """A depthwise convolution is a window."""
    a = node.arguments
    bias, groups = c.tensor(a.get("bias")), int(number(a.get("groups", 1)))
    outputs, per_group = weight.shape[:2]
    if per_group * groups != x.channels or outputs % groups:
        raise NotNative("the channels of a convolution do not fit its weight")
    image = c.stored(x)
    made = Made((outputs, *lay.out) if len(x.shape) == 3 else (outputs, lay.out[1]), parts=x.parts)
    if groups == x.channels == outputs and groups > 1:
        rows = per_channel(weight.reshape(outputs, -1).T)
        step = Step(StepKind.WINDOW, c.layer, input=image, geometry=lay, reduce=Reduce.WEIGHTED, weights=rows)
    else:
        _pad(image, lay, ones=False)
        rows = np.ascontiguousarray(weight.transpose(0, 2, 3, 1), np.float32)
        step = Step(StepKind.CONV, c.layer, input=image, geometry=lay, groups=groups, weights=rows)
    c.start(step, made)
    return with_bias(c, made, bias)


def linear(c: Compiler, node: Node) -> Made:
    """A float linear layer."""
    a = node.arguments
    weight, bias = c.tensor(a["weight"]), c.tensor(a.get("bias"))
    assert weight is not None
    rows = np.ascontiguousarray(weight, np.float32)
    return with_bias(c, _linear(c, c.value(a["input"]), rows, len(weight), weight.shape[1], Dot.FLOAT), bias)


def _linear(c: Compiler, x: Made, weight: Array, outputs: int, inputs: int, dot: Dot) -> Made:
    x = c.with_channels(x, last=True)
    if x.channels != inputs:
        raise NotNative("the rows of a linear layer do not lie along the channels")
    image, made = c.stored(x), x.of_channels(outputs)
    c.start(Step(StepKind.CONV, c.layer, input=image, geometry=_point(image), weights=weight, dot=dot), made)
    return made


def signed_conv2d(c: Compiler, node: Node) -> Made:
    """A convolution of floats with ±1 filters."""
    a = node.arguments
    x, weight = c.as_grid(c.value(a["x"])), c.tensor(a["weight"])
    assert weight is not None
    if len(weight) > 1:
        raise NotNative("several weight planes with float input")
    lay, image = geometry(node, pair(a["kernel"]), x.grid), c.stored(x)
    _pad(image, lay, ones=a["pad_bit"] == "one")
    groups, made = int(number(a["groups"])), Made((weight.shape[1], *lay.out), parts=x.parts)
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


def masked_conv2d(c: Compiler, node: Node) -> Made:
    """A float convolution of images where a mask says so."""
    a = node.arguments
    x, weight = c.value(a["x"]), c.tensor(a["weight"])
    assert weight is not None
    if number(a["groups"]) != 1:
        raise NotNative("a masked convolution has groups")
    lay, image = geometry(node, (weight.shape[2], weight.shape[3]), x.grid), c.stored(x)
    _pad(image, lay, ones=False)
    return _masked(c, node, image, weight.transpose(0, 2, 3, 1), lay, rank=3)


def masked_linear(c: Compiler, node: Node) -> Made:
    """A float linear layer where a mask says so."""
    weight = c.tensor(node.arguments["weight"])
    assert weight is not None
    image = c.stored(c.value(node.arguments["x"]))
    return _masked(c, node, image, weight, _point(image), rank=1)


def _masked(c: Compiler, node: Node, image: Image, weight: Array, lay: Geometry, *, rank: int) -> Made:
    mask, bias = c.value(node.arguments["mask"]).image, c.tensor(node.arguments["bias"])
    assert mask is not None
    assert bias is not None
    rows, summand = np.ascontiguousarray(weight), per_channel(bias)
    step = Step(StepKind.MASKED, c.layer, input=image, mask=mask, geometry=lay, weights=rows, bias=summand)
    made = Made((len(rows), *lay.out)[:rank], parts=image.parts)
    c.start(step, made)
    return made


def _pad(image: Image, lay: Geometry, *, ones: bool) -> None:
    """Give an image the halo that windows read."""
    halo = lay.halo(image.height, image.width)
    if not any(halo):
        return
    if any(image.halo) and image.halo_of_ones != ones:
        raise NotNative("a value is padded with zeros for one layer and with ones for another")
    image.halo_of_ones = ones
    image.widen(*halo)


def _point(image: Image) -> Geometry:
    one = (1, 1)
    return Geometry(one, one, one, (0, 0), (image.height, image.width))
