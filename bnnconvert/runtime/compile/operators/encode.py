"""Bits and bytes of values: what binary and 8-bit layers read."""

import numpy as np

from bnnconvert.artifact.schema import Array
from bnnconvert.runtime.compile.arguments import number
from bnnconvert.runtime.compile.compiler import Compiler
from bnnconvert.runtime.compile.made import Made
from bnnconvert.runtime.compile.plan import (
    LANES,
    Code,
    Dot,
    Image,
    Kind,
    NotNative,
    Op,
    Reduce,
    Step,
    StepKind,
    per_channel,
)
from bnnconvert.values.program import Node

NONE_INT = np.iinfo(np.int32).max


def encode(c: Compiler, node: Node) -> Made:
    """Bits: of accumulators by integer thresholds in the layer itself, else in the chain of the step that makes x."""
    x = c.value(node.arguments["x"])
    thresholds, start = c.tensor(node.arguments["thresholds"]), c.tensor(node.arguments["start"])
    assert thresholds is not None
    assert start is not None
    planes, _, levels = thresholds.shape
    if x.axis != 1:
        raise NotNative("the channels of an encoding lie on another axis than the second")
    bits = x.new_image(Kind.BITS, planes)
    made = x.of_channels(planes * x.channels, image=bits)
    rows = np.broadcast_to(thresholds, (planes, x.channels, levels))
    starts = np.broadcast_to(start, (planes, x.channels))
    step = x.step
    if step is not None and thresholds.dtype == np.int32 and (planes, levels) == (1, 1):
        if c.is_fresh(x, step):
            _take_thresholds(step, rows[0, :, 0], starts[0], bits)
            return made
        layer = _pooled_layer(c, x, step)
        if layer is not None:
            assert layer.geometry is not None
            early = Image(Kind.BITS, x.channels, *layer.geometry.out, parts=x.parts)
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
    readers = [s for s in c.steps if pool.input in s.images()]
    layer = readers[0]
    stores_only = len(layer.chain) == 1 and layer.chain[0].code == Code.STORE and layer.chain[0].image is pool.input
    is_binary = layer.kind == StepKind.CONV and layer.dot == Dot.BINARY and layer.thresholds is None
    fills_blocks = layer.groups == 1 or x.channels // layer.groups % LANES == 0
    is_sum = layer.weight_planes == 1 and layer.input is not None and layer.input.planes == 1
    ours = [name for name, m in c.made.items() if m.image is pool.input]
    is_free = len(readers) == 2 and not any(c.uses[name] for name in ours)
    return layer if stores_only and is_binary and fills_blocks and is_sum and is_free else None


def quantize(c: Compiler, node: Node) -> Made:
    """Bytes, which the way in or the chain of the step that makes the number writes."""
    x = c.value(node.arguments["x"])
    factor = number(node.arguments["factor"])
    source = next((s for s in c.steps if s.kind == StepKind.INPUT and s.output is x.image), None)
    if source is not None and not source.tokens and not c.is_read(x.image) and not c.is_used_later(x):
        source.output, source.factor = x.new_image(Kind.BYTES), factor
        return x.like(image=source.output)
    step = c.ending_with(x)
    image = x.new_image(Kind.BYTES)
    step.chain.append(Op(Code.QUANTIZE, image, low=factor))
    return x.like(image=image)
