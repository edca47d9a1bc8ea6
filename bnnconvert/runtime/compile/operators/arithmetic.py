"""Sums, differences, products and quotients, of two values or of a value and a constant."""

import math
from collections.abc import Callable, Mapping

import numpy as np

from bnnconvert.artifact.schema import Array
from bnnconvert.runtime.compile.arguments import number
from bnnconvert.runtime.compile.compiler import Compiler, Handler
from bnnconvert.runtime.compile.made import Made
from bnnconvert.runtime.compile.operators.affine import scaled
from bnnconvert.runtime.compile.plan import Code, NotNative, Op
from bnnconvert.values.program import Argument, Constant, Node, Value


def arithmetic(name: str) -> Handler:
    """Addition, subtraction, multiplication and division, of two values or of a value and a constant."""

    def handle(c: Compiler, node: Node) -> Made:
        alpha = number(node.arguments.get("alpha", 1))
        left, right = (_operand(c, node.arguments[side]) for side in ("self", "other"))
        if left.constant is None:
            right = _as_value(c, right, left)
        elif right.constant is None:
            left = _as_value(c, left, right)
        if left.constant is None and right.constant is None:
            return _two_values(c, name, left, right, alpha)
        if right.constant is not None and left.constant is None:
            left, k = _channelwise(c, right.constant, left)
            if name == "div" and not k.all():
                raise NotNative("a value is divided by zero")
            return scaled(c, left, *_ON_THE_RIGHT[name](k, alpha))
        if left.constant is not None and right.constant is None and name != "div":
            right, k = _channelwise(c, left.constant, right)
            return scaled(c, right, *_ON_THE_LEFT[name](k, alpha))
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


def reversed_difference(c: Compiler, node: Node) -> Made:
    """A number minus a value."""
    a = node.arguments
    return scaled(c, c.value(a["self"]), -number(a.get("alpha", 1)), number(a["other"]))


def multiplied_and_added(c: Compiler, node: Node) -> Made:
    """A value times a factor per channel, and a summand per channel."""
    a = node.arguments
    summand, factor, x = (c.value(a[name]) for name in ("self", "tensor1", "tensor2"))
    if x.constant is not None:
        factor, x = x, factor
    if x.constant is not None or factor.constant is None or summand.constant is None:
        raise NotNative("a product of two values is added")
    x, k = _channelwise(c, factor.constant, x)
    return _sum(c, scaled(c, x, k * number(a.get("value", 1)), 0.0), summand.constant)


def _sum(c: Compiler, x: Made, constant: Array) -> Made:
    x, k = _channelwise(c, constant, x)
    return scaled(c, x, 1.0, k)


def _operand(c: Compiler, argument: Argument) -> Made:
    if isinstance(argument, Value | Constant):
        return c.value(argument)
    return Made((), constant=np.asarray(number(argument)))


def _as_value(c: Compiler, constant: Made, x: Made) -> Made:
    """A constant that varies over more than channels as a value in the places of another one; any other as it is."""
    if constant.constant is None:
        return constant
    full = _of_all_axes(constant.constant, x)
    varies = [axis for axis, size in enumerate(full.shape) if size > 1]
    if varies in ([], [1], [len(x.shape)]):
        return constant
    return c.same_for_all(np.broadcast_to(full, (x.parts, *x.shape)), x)


def _two_values(c: Compiler, name: str, left: Made, right: Made, alpha: float) -> Made:
    """The operand that is made last takes the other one into its chain."""
    if name == "div":
        return _two_values(c, "mul", left, c.extended(right, Op(Code.RECIPROCAL)), alpha)
    if left.parts != right.parts:
        raise NotNative("one operand has parts of samples where the other has samples")
    if left.shape == right.shape:
        right = c.lying_like(right, left)
    joins_left = c.order(left) >= c.order(right)
    if left.tokens != right.tokens:
        raise NotNative("the channels of two operands lie on different axes")
    if left.shape != right.shape:
        joins_left = math.prod(left.shape) > math.prod(right.shape)
        large, small = (left, right) if joins_left else (right, left)
        is_pixel_gain = name == "mul" and small.channels == 1 and small.pixels == large.pixels
        if is_pixel_gain:
            return c.extended(large, Op(Code.GAIN, c.stored(small)))
        if small.channels != large.channels or math.prod(small.size) != 1 or len(small.shape) != len(large.shape):
            raise NotNative(f"operands have the shapes {left.shape} and {right.shape}")
    if math.prod(left.size) > 1 and math.prod(right.size) > 1 and left.size != right.size:
        raise NotNative("the pixels of two operands lie in different ways")
    base, other = (left, right) if joins_left else (right, left)
    image = c.stored(other)
    if name == "mul":
        return c.extended(base, Op(Code.MULTIPLY, image))
    sign = -alpha if name == "sub" else alpha
    if joins_left:
        return c.extended(base, Op(Code.ADD, image, low=sign))
    signed = base if sign == 1.0 else scaled(c, base, sign, 0.0)
    return c.extended(signed, Op(Code.ADD, image, low=1.0))


def _channelwise(c: Compiler, constant: Array, x: Made) -> tuple[Made, Array]:
    """A constant operand per channel of x, if it varies over one axis only; x comes with that axis as its channels."""
    array = np.asarray(constant, np.float64)
    if array.size == 1:
        return x, array.reshape(-1)
    full = _of_all_axes(array, x)
    if full.shape[x.axis] == 1:
        x = c.with_channels(x, last=not x.tokens)
    if full.shape[x.axis] != x.channels or full.size != x.channels:
        raise NotNative("a constant operand varies over more than the channels")
    return x, full.reshape(-1)


def _of_all_axes(constant: Array, x: Made) -> Array:
    """A constant operand with as many axes as the value has with its samples."""
    if constant.ndim > len(x.shape) + 1:
        raise NotNative("a constant operand has more axes than the value")
    return constant.reshape((1,) * (len(x.shape) + 1 - constant.ndim) + constant.shape)
