"""Values so near a sign's threshold that rounding decides their bit, and who may differ because of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from bnnconvert.artifact.schema import Array
from bnnconvert.bits import Bits
from bnnconvert.runtime import packed
from bnnconvert.runtime.session import Session, flattened
from bnnconvert.values.program import Constant, Node, Output, Value

ROUNDING = 2.0**-18
"""64 units in the last place (half-ulp roundings of float32) of the layer's largest value."""
TOLERANCE, SMALL = 1e-3, 0.1
"""Difference of outputs in units of the largest one, which counts as no less than `SMALL`."""


def at_boundary(x: Array, thresholds: Array) -> Bits:
    """Which bits belong to a value within rounding of a threshold.

    Shapes: x (N, C, ...), thresholds (P, C or 1, T) -> (N, P * C, ...).
    """
    tail = (1,) * (x.ndim - 2)
    levels = (thresholds[..., level].reshape(*thresholds.shape[:2], *tail) for level in range(thresholds.shape[-1]))
    limit = ROUNDING * float(np.abs(x).max(initial=0))
    near = np.zeros((len(x), len(thresholds), *x.shape[1:]), np.bool_)
    for level in levels:
        near |= np.abs(x[:, None] - level) <= limit
    return near.reshape(len(x), -1, *x.shape[2:])


def differing(actual: list[Array], expected: list[Array]) -> tuple[Bits, float]:
    """Samples whose outputs differ by more than the tolerance, and the largest difference."""
    differs, largest = np.zeros(len(expected[0]) if expected else 0, np.bool_), 0.0
    for a, e in zip(actual, expected, strict=True):
        difference = np.abs(a.astype(np.float64) - e.astype(np.float64)).reshape(len(a), -1).max(1, initial=0.0)
        differs |= ~(difference <= TOLERANCE * max(SMALL, float(np.abs(e).max(initial=0.0))))
        largest = max(largest, float(difference.max(initial=0.0)))
    return differs, largest


class Flips:
    """Differences in bits of one batch, layer by layer in execution order."""

    def __init__(self, samples: int) -> None:
        self.parted = np.zeros(samples, np.bool_)
        """Samples with a difference: from there on they are on another path."""
        self.explained = np.ones(samples, np.bool_)
        """Samples whose first differences all lie at a boundary."""

    def add(self, flips: Bits, boundary: Bits) -> Bits:
        """Take the next layer; returns those of its differences that are the first of their sample.

        Shapes: all (N, bits).
        """
        first = flips & ~self.parted[:, None]
        self.explained &= ~(first & ~boundary).any(1)
        self.parted |= flips.any(1)
        return first


class EngineCheck:
    """Where the native engine parts from the portable executor, seen by running it with what its signs are taken of."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.encodes = [node for node in session.program.nodes if _is_of_floats(node, session)]
        names = [_input(node) for node in self.encodes]
        items = tuple(Output(kind="value", value=name) for name in (*names, *session.program.output.values()))
        program = session.program.model_copy(update={"output": Output(kind="tuple", items=items)})
        self.shown = Session(replace(session.artifact, program=program), engine="native")

    def values_of(self, values: Mapping[str, Array], samples: Bits) -> dict[str, Array]:
        """What `explained` looks at, of the chosen samples alone: a look at one costs as much as many runs."""
        names = {*map(_input, self.encodes), *self.session.program.output.values()}
        return {name: _of_samples(values[name], samples) for name in names}

    def explained(self, inputs: Sequence[Array], values: Mapping[str, Array]) -> Bits:
        """Samples whose outputs may differ from the portable `values`, as bits at a boundary do before any other.

        Where the engine agrees in all bits once it shows them, its outputs must agree as well, and some value must lie
        at a boundary: then what differed was the rounding of an operation that showing the values took apart.
        """
        seen, samples = flattened(self.shown.run(*inputs)), len(inputs[0])
        flips, near = Flips(samples), np.zeros(samples, np.bool_)
        for node, ours in zip(self.encodes, seen, strict=False):
            theirs, (thresholds, start) = values[_input(node)], _tables(node, self.session)
            boundary = at_boundary(theirs, thresholds).reshape(samples, -1)
            sides = [packed.encode(side, thresholds, start).reshape(samples, -1) for side in (ours, theirs)]
            flips.add(sides[0] != sides[1], boundary)
            near |= boundary.any(1)
        outputs = [values[name] for name in self.session.program.output.values()]
        differs, _ = differing(seen[len(self.encodes) :], outputs)
        return np.where(flips.parted, flips.explained, near & ~differs)


def _of_samples(value: Array, samples: Bits) -> Array:
    """The chosen samples of a value, whose first axis may hold parts of each, such as its frames."""
    by_sample = value.reshape(len(samples), -1, *value.shape[1:])
    return by_sample[samples].reshape(-1, *value.shape[1:])


def _input(node: Node) -> str:
    argument = node.arguments["x"]
    assert isinstance(argument, Value)
    return argument.value


def _tables(node: Node, session: Session) -> tuple[Array, Bits]:
    tables = [node.arguments[name] for name in ("thresholds", "start")]
    thresholds, start = (session.artifact.tensors[t.tensor] for t in tables if isinstance(t, Constant))
    return thresholds, start


def _is_of_floats(node: Node, session: Session) -> bool:
    return node.op == "bnnconvert.encode" and _tables(node, session)[0].dtype == np.float32
