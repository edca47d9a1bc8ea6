"""Functions of each number, and softmax."""

import math

import numpy as np

from bnnconvert.artifact.schema import Array
from bnnconvert.runtime.compile.arguments import number
from bnnconvert.runtime.compile.compiler import Compiler, Handler
from bnnconvert.runtime.compile.made import Made
from bnnconvert.runtime.compile.plan import Code, NotNative, Op, Step, StepKind, per_channel
from bnnconvert.values.program import Node


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
    if x.tokens and slope.size > 1:
        raise NotNative("slopes lie along another axis than the channels")
    return c.extended(x, Op(Code.PRELU, a=per_channel(np.broadcast_to(slope.reshape(-1), (x.channels,)))))


def softmax(*, logarithm: bool) -> Handler:
    """Softmax over the channels, or its logarithm."""

    def handle(c: Compiler, node: Node) -> Made:
        x = c.value(node.arguments["self"])
        axis = int(number(node.arguments["dim"])) % (len(x.shape) + 1)
        if axis != x.axis or node.arguments.get("dtype") is not None:
            raise NotNative("a softmax over another axis than the channels")
        made = x.like(image=x.new_image())
        c.steps.append(Step(StepKind.SOFTMAX, c.layer, input=c.stored(x), output=made.image, logarithm=logarithm))
        return made

    return handle
