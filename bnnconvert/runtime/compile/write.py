"""A plan as the engine reads it: 64-bit words, then tensors and names, in the order of `csrc/engine/read.cpp`."""

import struct

import numpy as np

from bnnconvert.artifact.schema import Array
from bnnconvert.runtime.compile.plan import READS, WRITES, Code, Image, Op, Plan, Step, StepKind

MAGIC = b"bnnplan3"


def plan_bytes(plan: Plan) -> bytes:
    """The bytes of a plan."""
    return _Writer().plan(plan)


class _Writer:
    """Words first, as tensors and names lie behind all of them; their places are filled in at the end."""

    def __init__(self) -> None:
        self.words: list[bytes] = []
        self.blobs: dict[int, tuple[int, bytes]] = {}
        self.size = 0

    def plan(self, plan: Plan) -> bytes:
        self.words.append(MAGIC)
        images = plan.images()
        self.numbers = {image: number for number, image in enumerate(images)}
        self.integers(len(images))
        for image in images:
            self.integers(image.kind, image.channels, image.height, image.width, *image.halo, image.planes)
            self.integers(image.halo_of_ones, image.parts)
        self.integers(len(plan.steps))
        for step in plan.steps:
            self.step(step)
        begin = 8 * len(self.words)
        for position, (offset, data) in self.blobs.items():
            self.words[position] = struct.pack("<q", begin + offset if data else 0)
        return b"".join(self.words) + b"".join(data + bytes(-len(data) % 8) for _, data in self.blobs.values())

    def integers(self, *values: int) -> None:
        self.words.extend(struct.pack("<q", int(value)) for value in values)

    def reals(self, *values: float) -> None:
        self.words.extend(struct.pack("<d", value) for value in values)

    def blob(self, data: Array | bytes | None) -> None:
        content = b"" if data is None else data if isinstance(data, bytes) else np.ascontiguousarray(data).tobytes()
        self.blobs[len(self.words)] = self.size, content
        self.integers(0, len(content))
        self.size += len(content) + -len(content) % 8

    def image(self, image: Image | None) -> None:
        assert image is not None
        self.integers(self.numbers[image])

    def step(self, step: Step) -> None:
        self.integers(step.kind)
        self.blob(step.layer.encode())
        match step.kind:
            case StepKind.INPUT:
                self.image(step.output)
                self.reals(step.factor)
                self.integers(step.tokens)
            case StepKind.OUTPUT:
                self.image(step.input)
                self.integers(step.tokens)
            case StepKind.MAP:
                self.image(step.input)
            case StepKind.CONV:
                self.conv(step)
            case StepKind.MASKED:
                assert step.weights is not None
                self.image(step.input)
                self.geometry(step)
                self.integers(len(step.weights))
                self.image(step.mask)
                self.blob(step.weights)
                self.blob(step.bias)
            case StepKind.WINDOW:
                self.image(step.input)
                self.geometry(step)
                self.integers(step.reduce, step.divisor)
                self.blob(step.weights)
            case StepKind.SOFTMAX | StepKind.NORMALIZE | StepKind.COPY:
                self.image(step.input)
                self.image(step.output)
                if step.kind == StepKind.SOFTMAX:
                    self.integers(step.logarithm)
                if step.kind == StepKind.NORMALIZE:
                    self.reals(step.factor)
            case StepKind.CONSTANT:
                self.image(step.output)
                self.blob(step.weights)
            case StepKind.MOVE:
                self.image(step.input)
                self.image(step.output)
                self.integers(step.clears)
                self.blob(step.runs)
            case StepKind.POOL_BITS:
                self.image(step.input)
                self.geometry(step)
                self.image(step.output)
                self.blob(step.weights)
            case StepKind.ATTENTION:
                self.integers(step.heads, *step.sizes, step.signs)
                self.reals(step.factor)
                for part in step.operands:
                    self.image(part.image)
                    self.integers(part.offset, part.stride)
                self.image(step.output)
        if step.kind in (StepKind.CONV, StepKind.MASKED, StepKind.WINDOW, StepKind.MAP):
            self.integers(len(step.chain))
            for op in step.chain:
                self.op(op)

    def geometry(self, step: Step) -> None:
        g = step.geometry
        assert g is not None
        self.integers(*g.kernel, *g.stride, *g.dilation, *g.padding, *g.out)

    def conv(self, step: Step) -> None:
        self.integers(step.dot)
        self.image(step.input)
        self.geometry(step)
        assert step.weights is not None
        outputs = step.weights.shape[1 if step.weights.ndim == 3 else 0]  # rows of bits stand in planes
        self.integers(outputs, step.groups, step.weight_planes, step.pads_zero)
        for tensor in (step.weights, step.scale, step.bias, step.thresholds, step.start):
            self.blob(tensor)
        if step.thresholds is not None:
            self.image(step.output)

    def op(self, op: Op) -> None:
        self.integers(op.code)
        self.reals(op.low, op.high)
        if op.code in READS:
            self.image(op.image)
        elif op.code == Code.AFFINE:
            self.blob(op.a)
            self.blob(op.b)
        elif op.code == Code.PRELU:
            self.blob(op.a)
        elif op.code in WRITES:
            self.image(op.image)
            if op.code == Code.STORE:
                self.integers(op.channel)
            if op.code == Code.ENCODE:
                self.integers(op.levels)
                self.blob(op.a)
                self.blob(op.start)
