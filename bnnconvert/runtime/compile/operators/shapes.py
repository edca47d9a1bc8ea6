"""Other shapes for the same numbers, and values side by side."""

import math
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from bnnconvert.artifact.schema import Array
from bnnconvert.runtime.compile.arguments import number
from bnnconvert.runtime.compile.compiler import Compiler, Handler, all_of
from bnnconvert.runtime.compile.made import SAMPLES, Made, View
from bnnconvert.runtime.compile.moves import by_axis, moved
from bnnconvert.runtime.compile.order import axes_after
from bnnconvert.runtime.compile.plan import Code, Kind, NotNative, Op, Step, StepKind
from bnnconvert.values.program import Argument, Batch, Node, Value


def reshape(c: Compiler, node: Node) -> Made:
    """Another shape for the same numbers: nothing to do where channels and image stay, else a copy."""
    x, declared = c.value(node.arguments["self"]), node.outputs[0].shape
    wanted = node.arguments.get("shape", node.arguments.get("size"))
    if isinstance(wanted, tuple) and not _names(wanted, declared):
        raise NotNative(f"{wanted} is no way to write the shape {declared}")
    shape = tuple(d for d in declared[1:] if isinstance(d, int))
    if declared[0] != Batch(batch=x.parts):
        raise NotNative(f"{x.parts} parts of a sample become {declared[0]}")
    if math.prod(shape) != math.prod(x.shape) or not shape:
        raise NotNative(f"the shape {x.shape} becomes {shape}")
    after = Made(shape, tokens=x.tokens and len(shape) > 1, parts=x.parts)
    if x.channels == after.channels:
        return _renamed(c, x, after)
    if x.tokens:
        raise NotNative(f"tokens of the shape {x.shape} become {shape}")
    if x.image is not None and x.image.kind != Kind.FLOATS:
        raise NotNative("bits take another shape")
    after.image = after.new_image()
    c.steps.append(Step(StepKind.COPY, c.layer, input=c.stored(x), output=after.image))
    return after


def reordered(c: Compiler, node: Node) -> Made:
    """Another order of axes: nothing to do where it moves the channels alone, to the front or to the end."""
    x = c.value(node.arguments["self"])
    axes = axes_after(node, len(x.shape) + 1)
    pixels = [axis for axis in axes[1:] if axis != x.axis]
    if axes[0] != 0 or pixels != sorted(pixels) or x.axis not in (axes[1], axes[-1]):
        raise NotNative(f"the axes of {x.shape} take the order {axes}")
    tokens = len(axes) > 2 and axes[-1] == x.axis
    after = Made(tuple(x.shape[axis - 1] for axis in axes[1:]), tokens=tokens, parts=x.parts)
    return _renamed(c, x, after)


def moving(handler: Handler | None = None) -> Handler:
    """What `handler` makes of it, or else the places that the numbers have now: others may read them from there."""

    def handle(c: Compiler, node: Node) -> Made | list[Made]:
        argument = node.arguments["self" if "self" in node.arguments else "input"]
        source = c.made[argument.value] if isinstance(argument, Value) else c.value(argument)
        if source.constant is not None:
            if any(isinstance(size, Batch) for spec in node.outputs for size in spec.shape):
                return _for_all(c, node, source.constant)
            return [Made(part.shape, constant=part) for part in moved(node, source.constant, 1)]
        if handler is not None and source.view is None:
            with suppress(NotNative):
                return handler(c, node)
        return [view.settled() for view in c.view(argument).moved(node, c.at)]

    return handle


def _for_all(c: Compiler, node: Node, constant: Array) -> list[Made]:
    """A constant that becomes one of each sample."""
    (spec,), (several,) = node.outputs, moved(node, constant, SAMPLES)
    if len(spec.shape) < 2 or not isinstance(spec.shape[0], Batch):
        raise NotNative("a constant takes a shape that depends on the batch")
    parts = several.reshape(SAMPLES, -1, *several.shape[1:])
    if not np.array_equal(parts[0], parts[1]):
        raise NotNative("a constant differs between samples")
    tokens = spec.name in c.as_tokens
    return [c.same_for_all(parts[0], Made(several.shape[1:], tokens=tokens, parts=len(parts[0])))]


def same(c: Compiler, node: Node) -> Made:
    """The value itself."""
    return c.value(node.arguments["self"])


def same_type(c: Compiler, node: Node) -> Made:
    """The value itself, where its type is not another one."""
    argument = node.arguments["self"]
    if not isinstance(argument, Value) or c.specs[argument.value].dtype != node.outputs[0].dtype:
        raise NotNative("a value takes another type")
    return c.made[argument.value]


def _renamed(c: Compiler, x: Made, after: Made) -> Made:
    """Another name for the same numbers, in the same image or chain."""
    if c.is_used_later(x):
        c.stored(x)
    after.lying(x.size)
    after.step, after.image = x.step, x.image
    if x.step is not None and c.top.get(x.step) is x:
        c.top[x.step] = after
    return after


def _names(wanted: Sequence[Argument], declared: Sequence[Argument]) -> bool:
    """Whether the sizes that a node asks for are those that it declares; one of them may be -1."""
    same = [w in (-1, d) for w, d in zip(wanted, declared, strict=False)]
    return len(wanted) == len(declared) and all(same) and wanted.count(-1) <= 1


def cat(c: Compiler, node: Node) -> Made:
    """Values side by side: on the channel axis as each is made, else by moving them."""
    parts, axis = _operands(node)
    sources = [c.made[part.value] if isinstance(part, Value) else c.value(part) for part in parts]
    if any(x.constant is not None for x in sources):
        raise NotNative("a constant is put beside values")
    if any(x.view is not None or axis != x.axis or _placed(x) != _placed(sources[0]) for x in sources):
        return _joined(c, node, [c.view(part) for part in parts], axis)
    operands = [c.value(argument) for argument in parts]
    first = operands[0]
    made = first.of_channels(sum(x.channels for x in operands))
    made.image, channel = made.new_image(), 0
    for x in operands:
        c.ending_with(x).chain.append(Op(Code.STORE, made.image, channel=channel))
        channel += x.channels
    return made


def stack(c: Compiler, node: Node) -> Made:
    """Values on a new axis."""
    parts, axis = _operands(node)
    views = [c.view(part) for part in parts]
    return _joined(c, node, [view.with_axis(axis) for view in views], axis)


def _operands(node: Node) -> tuple[tuple[Argument, ...], int]:
    """What is put beside each other, and along which axis of the result."""
    parts = node.arguments["tensors"]
    assert isinstance(parts, tuple)
    return parts, int(number(node.arguments.get("dim", 0))) % len(node.outputs[0].shape)


def _joined(c: Compiler, node: Node, views: list[View], axis: int) -> Made:
    if axis == 0:
        raise NotNative("samples are put beside each other")
    spec = node.outputs[0]
    made = Made(spec.sized(1)[1:], parts=views[0].parts)
    c.join(made, list(zip(views, View.beside(views, axis), strict=True)), c.orders(made, spec.name))
    return made


def pad(c: Compiler, node: Node) -> Made | list[Made]:
    """A value with zeros around it, or with numbers of its own."""
    a, spec = node.arguments, node.outputs[0]
    given, fill = a["pad"], a.get("value")
    if a.get("mode", "constant") != "constant":
        return moving()(c, node)
    if not isinstance(given, tuple) or (fill is not None and number(fill) != 0):
        raise NotNative("a value is padded with other numbers than 0")
    view = c.view(a["self"])
    widths = [int(number(width)) for width in given]
    pairs = by_axis(widths, view.places.ndim)
    if min(widths) < 0 or any(pairs[0]):
        raise NotNative("a pad takes numbers away, or adds samples")
    made = Made(tuple(n + sum(p) for n, p in zip(view.places.shape[1:], pairs[1:], strict=True)), parts=view.parts)
    inside = tuple(slice(p[0], n + p[0]) for n, p in zip(view.places.shape[1:], pairs[1:], strict=True))
    places = all_of(made).reshape(made.parts, *made.shape)[(slice(None), *inside)]
    c.join(made, [(view, places)], c.orders(made, spec.name), rest=True)
    return made


def shaped_like(op: str, name: str) -> Handler:
    """An operator that takes a shape, in place of one that takes a value of that shape."""

    def handle(c: Compiler, node: Node) -> Made | list[Made]:
        other = node.arguments["other"]
        assert isinstance(other, Value)
        arguments = {"self": node.arguments["self"], name: c.specs[other.value].shape}
        return c.handlers[op](c, node.model_copy(update={"op": op, "arguments": arguments}))

    return handle


def _placed(x: Made) -> tuple[bool, int, tuple[int, ...], tuple[int, int]]:
    """How the pixels of a value lie."""
    return x.tokens, x.parts, x.pixels, x.size
