"""Affine operations per channel: a x + b, from whatever a program calls them."""

import numpy as np

from bnnconvert.artifact.schema import Array
from bnnconvert.runtime.compile.arguments import number
from bnnconvert.runtime.compile.compiler import Compiler
from bnnconvert.runtime.compile.made import Made
from bnnconvert.runtime.compile.plan import Code, Dot, NotNative, Op, Step, StepKind, per_channel
from bnnconvert.values.program import Node


def affine(c: Compiler, node: Node) -> Made:
    """A scaled sum of accumulator planes."""
    acc = c.value(node.arguments["acc"])
    scale, bias = c.tensor(node.arguments["scale"]), c.tensor(node.arguments["bias"])
    assert scale is not None
    if int(number(node.arguments["axis"])) % (len(acc.shape) + 1) != acc.axis:
        raise NotNative("an affine operation goes along another axis than the channels")
    if len(scale) == 1:
        return scaled(c, acc, scale[0], 0.0 if bias is None else bias)
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
    made = acc.of_channels(scale.shape[1], step=step)
    c.top[step] = made
    return made if bias is None else scaled(c, made, 1.0, bias)


def scaled(c: Compiler, before: Made, a: Array | float, b: Array | float) -> Made:
    """A value times `a` plus `b`, each a number or an array over the channels."""
    full = [per_channel(np.broadcast_to(np.asarray(v, np.float64).reshape(-1), (before.channels,))) for v in (a, b)]
    return c.extended(before, Op(Code.AFFINE, a=full[0], b=full[1]))


def with_bias(c: Compiler, made: Made, bias: Array | None) -> Made:
    """A value plus a bias per channel, where there is one."""
    return made if bias is None else scaled(c, made, 1.0, bias)


def batch_norm(c: Compiler, node: Node) -> Made:
    """Batch norm with its running statistics, as one affine operation."""
    a = node.arguments
    mean, var = c.tensor(a["running_mean"]), c.tensor(a["running_var"])
    weight, bias = c.tensor(a["weight"]), c.tensor(a["bias"])
    if mean is None or var is None:
        raise NotNative("a batch norm without running statistics")
    x = c.with_channels(c.value(a["input"]), last=False)
    factor = 1 / np.sqrt(var.astype(np.float64) + number(a["eps"]))
    if weight is not None:
        factor = factor * weight
    return scaled(c, x, factor, (0.0 if bias is None else bias) - mean * factor)


def layer_norm(c: Compiler, node: Node) -> Made:
    """Layer norm over the channels of each pixel, and its own affine operation."""
    a = node.arguments
    x, weight, bias = (
        c.with_channels(c.value(a["input"]), last=True),
        c.tensor(a.get("weight")),
        c.tensor(a.get("bias")),
    )
    if a["normalized_shape"] != (x.channels,) or x.axis != len(x.shape):
        raise NotNative("a layer norm over other axes than the channels")
    made = x.like(image=x.new_image())
    eps = number(a.get("eps", 1e-5))
    c.steps.append(Step(StepKind.NORMALIZE, c.layer, input=c.stored(x), output=made.image, factor=eps))
    if weight is None and bias is None:
        return made
    return scaled(c, made, 1.0 if weight is None else weight, 0.0 if bias is None else bias)


def negative(c: Compiler, node: Node) -> Made:
    """The value with the other sign."""
    return scaled(c, c.value(node.arguments["self"]), -1.0, 0.0)
