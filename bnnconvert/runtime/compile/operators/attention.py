"""Attention over tokens, its heads being parts of their channels."""

import math

import numpy as np

from bnnconvert.runtime.compile.arguments import number
from bnnconvert.runtime.compile.compiler import Compiler, all_of
from bnnconvert.runtime.compile.made import SAMPLES, Made, View
from bnnconvert.runtime.compile.plan import Heads, NotNative, Signs, Step, StepKind
from bnnconvert.values.program import Node

_OTHER = "attention with a mask, groups or dropout"


def attention(c: Compiler, node: Node) -> Made:
    """Scaled products of queries and keys, their softmax, and the mean of the values by it."""
    a = node.arguments
    if a.get("is_causal") or a.get("enable_gqa") or number(a.get("dropout_p", 0)):
        raise NotNative(_OTHER)
    return _attention(c, node, Signs.NONE)


def binary_attention(c: Compiler, node: Node) -> Made:
    """The same by signs."""
    return _attention(c, node, Signs.BOTH if node.arguments["both"] else Signs.SCORES)


def _attention(c: Compiler, node: Node, signs: Signs) -> Made:
    a = node.arguments
    if a.get("attn_mask", a.get("mask")) is not None:
        raise NotNative(_OTHER)
    q, k, v = (_by_heads(c.view(a[name])) for name in ("query", "key", "value"))
    _, heads, queries, size = q.places.shape
    value_size, scale = v.places.shape[3], a.get("scale")
    base = Made((queries, heads * value_size), tokens=True, parts=q.parts)
    base.image = base.new_image()
    step = Step(StepKind.ATTENTION, c.layer, output=base.image, heads=heads, sizes=(size, value_size), signs=signs)
    step.factor = size**-0.5 if scale is None else number(scale)
    step.operands = (_heads(c, q), _heads(c, k), _heads(c, v))
    c.bare += [(image, c.at) for image in step.images()]
    c.steps.append(step)
    made = View.of(base, c.at).turned((queries, heads, value_size), (0, 2, 1, 3))
    return made.of_shape(node.outputs[0].sized(1)).settled()


def _by_heads(view: View) -> View:
    """Heads on the second of four axes; what stands before them are parts of a sample."""
    if view.places.ndim == 3:
        return view.with_axis(1)
    *ahead, heads, tokens, size = view.places.shape
    return view.of_shape((math.prod(ahead) // SAMPLES, heads, tokens, size))


def _heads(c: Compiler, view: View) -> Heads:
    """Where the heads lie, which are moved into the channels of tokens if they lie elsewhere."""
    base, places = view.base, view.places
    samples, heads, tokens, size = places.shape
    first = int(places[0, 0, 0, 0])
    stride = int(places[0, 1, 0, 0]) - first if heads > 1 else 0
    steps = (int(np.prod(base.shape)), stride, base.channels, 1)
    expected = first + sum(np.ogrid[tuple(slice(n) for n in places.shape)][axis] * by for axis, by in enumerate(steps))
    is_inside = stride >= 0 and first + (heads - 1) * stride + size <= base.channels
    is_whole = samples == SAMPLES * base.parts and tokens * base.channels == steps[0]
    if not (is_whole and is_inside and np.array_equal(places, expected)):
        side_by_side = Made((tokens, heads * size), tokens=True, parts=view.parts)
        moved = Made(side_by_side.shape, parts=view.parts)
        c.join(moved, [(view.turned((heads, tokens, size), (0, 2, 1, 3)), all_of(moved))], [side_by_side])
        assert moved.image is not None
        return Heads(moved.image, 0, size)
    assert base.image is not None
    return Heads(base.image, first, stride)
