"""Values of a program as far as they exist in a plan."""

import math
import operator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bnnconvert.artifact.schema import Array
from bnnconvert.runtime.compile.moves import moved
from bnnconvert.runtime.compile.plan import Image, Kind, NotNative, Step
from bnnconvert.values.program import Node

Places = npt.NDArray[np.int32]
SAMPLES = 2
"""With so many, an order that mixes samples shows."""
LARGEST = 2**24
"""Numbers of a value whose places are worked out one by one."""


@dataclass(eq=False)
class Made:
    """A value of the program, as far as it exists in the plan."""

    shape: tuple[int, ...]
    """Of one part of a sample, as the program has it."""
    step: Step | None = None
    """Makes the value in its chain."""
    image: Image | None = None
    """Holds the value."""
    constant: Array | None = None
    tokens: bool = False
    """Whether the channels are the last axis, as of tokens (T, C), and not the first, as of an image (C, H, W)."""
    parts: int = 1
    """Of a sample: what stands on the program's first axis for each, such as windows or frames."""
    lies: tuple[int, int] | None = None
    """Height and width of the image that holds the value, where they are not what the shape says."""
    view: "View | None" = None
    """Where its numbers lie, if it is no image or chain of its own."""

    @property
    def axis(self) -> int:
        """The axis of the channels, the samples and their parts being axis 0."""
        return len(self.shape) if self.tokens else 1

    @property
    def channels(self) -> int:
        """Channels."""
        return self.shape[self.axis - 1]

    @property
    def pixels(self) -> tuple[int, ...]:
        """The other axes."""
        return self.shape[:-1] if self.tokens else self.shape[1:]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image that holds the value; 1 for axes that the value does not have."""
        if self.lies is not None:
            return self.lies
        if len(self.pixels) == 0:
            return 1, 1
        if len(self.pixels) == 1:
            return (self.pixels[0], 1) if self.tokens else (1, self.pixels[0])
        return math.prod(self.pixels[:-1]), self.pixels[-1]

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width over which windows move."""
        if len(self.pixels) > 2:
            raise NotNative("windows move over a value of three axes and channels")
        if self.tokens or (self.lies is not None and self.lies != Made(self.shape).size):
            raise NotNative("windows move over a value whose pixels lie in another order")
        return self.size

    def ordered(self, *, tokens: bool) -> "Made":
        """A value of this shape with its channels last, or not."""
        return Made(self.shape, tokens=tokens, parts=self.parts)

    def new_image(self, kind: Kind = Kind.FLOATS, planes: int = 1) -> Image:
        """An image for such a value."""
        return Image(kind, self.channels, *self.size, planes=planes, parts=self.parts)

    def lying(self, size: tuple[int, int]) -> "Made":
        """The value itself, held by an image of that height and width."""
        self.lies = None if self.size == size else size
        return self

    def like(self, **given: Any) -> "Made":
        """A value of this shape and order."""
        return Made(self.shape, tokens=self.tokens, parts=self.parts, lies=self.lies, **given)

    def of_channels(self, channels: int, **given: Any) -> "Made":
        """A value with these pixels and other channels."""
        shape = (*self.pixels, channels) if self.tokens else (channels, *self.pixels)
        return Made(shape, tokens=self.tokens, parts=self.parts, lies=self.lies, **given)


@dataclass(frozen=True, eq=False)
class View:
    """Numbers of an image in another order, such as the heads of attention."""

    base: Made
    places: Places
    """Place of each number in the base's images. Shapes: those of the program, with SAMPLES samples."""
    maker: int
    """Number of the node that made it."""
    shape: npt.NDArray[np.int8]
    """An array of the shape that it has with one sample more: what fits only so many samples shows."""

    @staticmethod
    def of(base: Made, maker: int) -> "View":
        """All numbers of a value in its own order."""
        parts, pixels, channels = SAMPLES * base.parts, math.prod(base.pixels), base.channels
        if parts * pixels * channels > LARGEST:
            raise NotNative("a value is too large to look at number by number")
        places = np.arange(parts * pixels * channels, dtype=np.int32).reshape(parts, pixels, channels)
        places = places if base.tokens else places.transpose(0, 2, 1)
        one_more = np.broadcast_to(np.int8(0), ((SAMPLES + 1) * base.parts, *base.shape))
        return View(base, places.reshape(parts, *base.shape), maker, one_more)

    @property
    def parts(self) -> int:
        """Of a sample, on the first axis, if the samples stand there."""
        return len(self.places) // SAMPLES

    def moved(self, node: Node, maker: int) -> "list[View]":
        """What an operator that moves numbers makes of it, for each of its outputs."""
        made, shapes = moved(node, self.places, SAMPLES), moved(node, self.shape, SAMPLES + 1)
        return [View(self.base, places, maker, shape) for places, shape in zip(made, shapes, strict=True)]

    def turned(self, shape: tuple[int, ...], axes: tuple[int, ...]) -> "View":
        """The same in another shape, which is that of a sample, and then with another order of axes."""
        places = self.places.reshape(len(self.places), *shape).transpose(axes)
        return replace(self, places=places, shape=self.shape.reshape(len(self.shape), *shape).transpose(axes))

    def of_shape(self, shape: tuple[int, ...]) -> "View":
        """The same in another shape, which is that of a sample with its parts on the first axis."""
        parts, *rest = shape
        places = self.places.reshape(SAMPLES * parts, *rest)
        return replace(self, places=places, shape=self.shape.reshape((SAMPLES + 1) * parts, *rest))

    def with_axis(self, axis: int) -> "View":
        """The same with another axis, of size 1."""
        return replace(self, places=np.expand_dims(self.places, axis), shape=np.expand_dims(self.shape, axis))

    @staticmethod
    def beside(views: "list[View]", axis: int) -> "list[Places]":
        """Where the numbers of each view stand in a value in which they lie one after another along an axis.

        Shapes: those of the views, of one sample.
        """
        sizes = [view.places.shape[axis] for view in views]
        shape = [views[0].parts, *views[0].places.shape[1:]]
        shape[axis] = sum(sizes)
        whole = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
        return np.split(whole, np.cumsum(sizes)[:-1], axis)

    def of_one_sample(self) -> Places:
        """Places of the first sample's numbers in those of the base.

        Raises: NotNative where numbers of several samples are mixed.
        """
        first: Places = self.places[: self.parts]
        size = self.base.parts * math.prod(self.base.shape)
        if not np.array_equal(self.places, np.concatenate([first + sample * size for sample in range(SAMPLES)])):
            raise NotNative("an order of numbers mixes the samples")
        return first

    def settled(self) -> Made:
        """The value: one of the base's image, if all its numbers lie as they would there."""
        base, shape = self.base, self.places.shape[1:]
        same = len(self.places) == SAMPLES * base.parts and math.prod(shape) == math.prod(base.shape)
        if same and shape:
            for tokens in (False, True):
                made = Made(tuple(shape), image=base.image, tokens=tokens and len(shape) > 1, parts=base.parts)
                in_memory = self.places if tokens else np.moveaxis(self.places, 1, -1)
                if made.channels == base.channels and _ascends(in_memory):
                    return made.lying(base.size)
        return Made(tuple(shape), view=self, parts=self.parts)


def _ascends(places: Places) -> bool:
    """Whether the places are 0, 1, 2 and so on; most that are not show it in one of a few."""
    some = [1 % places.size, places.size // 3, places.size - 1]
    seen = (int(places[np.unravel_index(place, places.shape)]) for place in some)
    return all(map(operator.eq, seen, some)) and np.array_equal(places.reshape(-1), np.arange(places.size))


def runs_of(source: Places, target: Places) -> Places:
    """Runs (from, to, how many) of neighbours that stay neighbours. Shapes: both (numbers,) -> (runs, 3)."""
    at = np.full(int(target.max()) + 1, -1, np.int32)  # a sort would take most of the time of a session's opening
    at[target] = source
    places = np.flatnonzero(at >= 0)
    numbers = at[places]
    begins = np.flatnonzero(np.concatenate([[True], (np.diff(numbers) != 1) | (np.diff(places) != 1)]))
    return np.stack([numbers[begins], places[begins], np.diff(begins, append=len(places))], 1).astype(np.int32)
