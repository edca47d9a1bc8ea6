"""The plan that the native engine runs: images, and steps that read and write them.

An image is a value with the channels last and a halo around it, which kernels read as padding. A step makes tiles of
numbers from images and sends them through a chain of operations, some of which write images.
"""

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from bnnconvert.artifact.schema import Array

LANES = 16


class NotNative(Exception):
    """The engine has no way to run a node; the text says what is missing."""


class Kind(IntEnum):
    """What an image holds."""

    FLOATS = 0
    BITS = 1
    BYTES = 2


class Code(IntEnum):
    """Operations of a chain; what each does stands in `csrc/kernels/chain/chain.h`."""

    LOAD = 0
    ADD = 1
    MULTIPLY = 2
    GAIN = 3
    AFFINE = 4
    CLAMP = 5
    PRELU = 6
    EXP = 7
    SIGMOID = 8
    TANH = 9
    SILU = 10
    HARDSIGMOID = 11
    HARDSWISH = 12
    GELU = 13
    GELU_TANH = 14
    SQRT = 15
    RECIPROCAL = 16
    ABS = 17
    SQUARE = 18
    STORE = 19
    ENCODE = 20
    QUANTIZE = 21


READS = (Code.ADD, Code.MULTIPLY, Code.GAIN)
WRITES = (Code.STORE, Code.ENCODE, Code.QUANTIZE)


class StepKind(IntEnum):
    """Kinds of steps."""

    INPUT = 0
    CONV = 1
    WINDOW = 2
    MAP = 3
    SOFTMAX = 4
    POOL_BITS = 5
    COPY = 6
    OUTPUT = 7
    MASKED = 8
    NORMALIZE = 9
    ATTENTION = 10
    MOVE = 11
    CONSTANT = 12


class Dot(IntEnum):
    """Operands of a convolution."""

    BINARY = 0
    FLOAT = 1
    BYTES = 2
    SIGNS = 3
    """Float inputs, weights of one bit."""


class Reduce(IntEnum):
    """What becomes of a window."""

    MAX = 0
    SUM = 1
    WEIGHTED = 2


@dataclass(eq=False)
class Image:
    """A value in memory. The halo grows with what its readers need, until the plan is written."""

    kind: Kind
    channels: int
    height: int
    width: int
    planes: int = 1
    halo: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    """Top, left, bottom, right."""
    halo_of_ones: bool = False
    parts: int = 1
    """Of a sample, such as its windows or frames: each is an image with a halo of its own."""

    def widen(self, *needed: int) -> None:
        """Make the halo at least as wide as that. Units: pixels at top, left, bottom, right."""
        self.halo = [max(a, b) for a, b in zip(self.halo, needed, strict=True)]


@dataclass(eq=False)
class Op:
    """One operation of a chain."""

    code: Code
    image: Image | None = None
    low: float = 0.0
    high: float = 0.0
    a: Array | None = None
    b: Array | None = None
    start: Array | None = None
    levels: int = 0
    channel: int = 0


@dataclass(frozen=True)
class Geometry:
    """How windows lie over an image. Units: pixels, height before width."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]
    out: tuple[int, int]

    def halo(self, height: int, width: int) -> tuple[int, int, int, int]:
        """What the windows read outside an image of that size."""
        reach = [
            (o - 1) * s - p + (k - 1) * d - (size - 1)
            for o, s, p, k, d, size in zip(
                self.out, self.stride, self.padding, self.kernel, self.dilation, (height, width), strict=True
            )
        ]
        return self.padding[0], self.padding[1], max(0, reach[0]), max(0, reach[1])


class Signs(IntEnum):
    """Which products of attention are of signs; as in `kernels/attention/attention.h`."""

    NONE = 0
    SCORES = 1
    BOTH = 2


@dataclass(frozen=True)
class Heads:
    """Heads side by side in the channels of an image: of head h those from `offset` + h `stride` on."""

    image: Image
    offset: int
    stride: int


@dataclass(eq=False)
class Step:
    """One step; `source` says what fills its tiles."""

    kind: StepKind
    layer: str
    input: Image | None = None
    output: Image | None = None
    mask: Image | None = None
    geometry: Geometry | None = None
    chain: list[Op] = field(default_factory=list)
    dot: Dot = Dot.FLOAT
    groups: int = 1
    weight_planes: int = 1
    pads_zero: bool = True
    reduce: Reduce = Reduce.MAX
    divisor: int = 0
    logarithm: bool = False
    factor: float = 0.0
    """Of an input that is taken in bytes, of the scores of attention; what a normalization adds to the variance."""
    tokens: bool = False
    """Whether what comes in or goes out has its channels last outside, too."""
    operands: tuple[Heads, ...] = ()
    """Queries, keys and values of attention."""
    heads: int = 0
    sizes: tuple[int, int] = (0, 0)
    """Of a head's queries and keys, and of its values."""
    signs: Signs = Signs.NONE
    clears: bool = False
    """Whether a move fills its output with zeros first."""
    runs: Array | None = None
    """What a move copies, in numbers of a sample, its pixels one after another: from, to, how many."""
    weights: Array | None = None
    scale: Array | None = None
    bias: Array | None = None
    thresholds: Array | None = None
    start: Array | None = None

    def reads(self) -> list[Image]:
        """Every image that the step reads."""
        given = (self.input, self.mask, *(part.image for part in self.operands))
        return [image for image in (*given, *(op.image for op in self.chain if op.code in READS)) if image is not None]

    def images(self) -> list[Image]:
        """Every image that the step reads or writes."""
        written = (self.output, *(op.image for op in self.chain if op.code in WRITES))
        return [*self.reads(), *(image for image in written if image is not None)]


@dataclass
class Plan:
    """Steps in the order in which they run."""

    steps: list[Step]

    def images(self) -> list[Image]:
        """Every image that a step reads or writes, in that order."""
        seen: dict[Image, None] = {}
        for step in self.steps:
            seen.update(dict.fromkeys(step.images()))
        return list(seen)


def per_channel(values: Array) -> Array:
    """Float values per channel, padded to whole blocks of channels. Shapes: (..., C) -> (..., 16 ceil(C / 16))."""
    array = np.asarray(values, np.float32)
    if array.shape[-1] % LANES == 0:
        return array
    padded = np.zeros((*array.shape[:-1], -(-array.shape[-1] // LANES) * LANES), np.float32)  # np.pad takes 50 us
    padded[..., : array.shape[-1]] = array
    return padded
