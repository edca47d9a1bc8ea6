"""From a program to a plan: which operators share a step, where values are stored, what becomes a constant.

An operator that works number by number joins the chain of the step that makes its operand, as long as that operand is
what the chain holds last. So a residual block is one step: convolution, batch norm, addition, activation, and the
bits of the next layer, in one pass over memory.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from bnnconvert.artifact.schema import Array
from bnnconvert.runtime.compile.plan import Code, Geometry, Image, Kind, Op, Plan, Step, StepKind, per_channel
from bnnconvert.values.program import Argument, Constant, NonFinite, Node, Program, Value


class NotNative(Exception):
    """The engine has no way to run this node; the text says what is missing."""


@dataclass(eq=False)
class Made:
    """A value of the program, as far as it exists in the plan."""

    shape: tuple[int, ...]
    """Of one sample, as the program has it."""
    step: Step | None = None
    """Makes the value in its chain."""
    image: Image | None = None
    """Holds the value."""
    constant: Array | None = None

    @property
    def channels(self) -> int:
        """Channels: the axis after the samples."""
        return self.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width; 1 for axes that the value does not have."""
        if len(self.shape) == 1:
            return 1, 1
        if len(self.shape) == 2:
            return 1, self.shape[1]
        if len(self.shape) == 3:
            return self.shape[1], self.shape[2]
        raise NotNative(f"a value has the shape {self.shape} per sample; 1 to 3 axes are known")


class Compiler:
    """State while the nodes of a program are walked."""

    def __init__(self, program: Program, tensors: Mapping[str, Array]) -> None:
        self.program, self.tensors = program, tensors
        self.steps: list[Step] = []
        self.made: dict[str, Made] = {}
        self.top: dict[Step, Made] = {}
        """What each step's chain holds last."""
        references = (r.value for node in program.nodes for r in node.references() if isinstance(r, Value))
        self.uses = Counter([*references, *program.output.values()])

    # What operators need

    def value(self, argument: Argument) -> Made:
        """An argument that is a value or a tensor of the file."""
        if isinstance(argument, Value):
            return self.made[argument.value]
        if isinstance(argument, Constant):
            tensor = self.tensors[argument.tensor]
            return Made(tensor.shape, constant=tensor)
        raise NotNative(f"an operand is {argument!r}")

    def tensor(self, argument: Argument) -> Array | None:
        """An argument that must be known now; None for None."""
        if argument is None:
            return None
        constant = self.value(argument).constant
        if constant is None:
            raise NotNative("an operand is computed that has to be a constant")
        return constant

    def start(self, step: Step, made: Made) -> None:
        """Add a step that makes a value."""
        made.step = step
        self.steps.append(step)
        self.top[step] = made

    def extend(self, before: Made, op: Op, after: Made) -> None:
        """Make `after` from `before` by an operation on each number, in the chain of the step that makes `before`."""
        step = before.step
        if step is None or self.top[step] is not before or self.is_late(op.image, step):
            step = Step(StepKind.MAP, self.layer, input=self.stored(before), channels=before.channels)
            self.start(step, before_in_map := Made(before.shape))
            self.top[step] = before_in_map
        elif self.is_used_later(before):
            self.stored(before)
        if op.code == Code.AFFINE and step.chain and step.chain[-1].code == Code.AFFINE:
            step.chain[-1] = composed(step.chain[-1], op)
        else:
            step.chain.append(op)
        after.step = step
        self.top[step] = after

    def stored(self, made: Made) -> Image:
        """The image that holds a value, made now if there is none."""
        if made.image is None:
            if made.step is None or self.top[made.step] is not made:
                raise NotNative("a constant is used as a value")
            made.image = Image(Kind.FLOATS, made.channels, *made.size)
            made.step.chain.append(Op(Code.STORE, made.image))
        return made.image

    def is_used_later(self, made: Made) -> bool:
        """Whether nodes that are still to come read it."""
        return any(m is made and self.uses[name] > 0 for name, m in self.made.items())

    def is_late(self, image: Image | None, step: Step) -> bool:
        """Whether an image is written after `step` has run."""
        if image is None:
            return False
        writers = [i for i, s in enumerate(self.steps) if s.output is image or any(o.image is image for o in s.chain if o.code == Code.STORE)]
        return bool(writers) and max(writers) >= self.steps.index(step)

    def order(self, made: Made) -> int:
        """When a value is made, for choosing the operand whose chain another one joins."""
        if made.step is None or self.top[made.step] is not made:
            return -1
        return self.steps.index(made.step)

    # The walk

    def compile(self, nodes: Iterable[Node], handlers: "Mapping[str, Handler]") -> Plan:
        """Plan of the whole program.

        Raises: NotNative.
        """
        for spec in self.program.inputs:
            self.layer = ""
            made = Made(spec.sized(1)[1:])
            made.image = Image(Kind.FLOATS, made.channels, *made.size)
            self.steps.append(Step(StepKind.INPUT, spec.name, output=made.image))
            self.made[spec.name] = made
        pending = list(nodes)
        encoders: dict[str, list[Node]] = {}
        for node in pending:
            if node.op == "bnnconvert.encode":
                x = node.arguments["x"]
                assert isinstance(x, Value)
                encoders.setdefault(x.value, []).append(node)
        for name in list(self.made):
            self.encode(encoders.get(name, ()), handlers)
        for node in pending:
            if node.op == "bnnconvert.encode":
                continue
            self.run(node, handlers)
            for spec in node.outputs:
                self.encode(encoders.get(spec.name, ()), handlers)
        for name in dict.fromkeys(self.program.output.values()):
            image = self.stored(self.made[name])
            self.steps.append(Step(StepKind.OUTPUT, name, input=image))
        return Plan(self.steps)

    def encode(self, nodes: Iterable[Node], handlers: "Mapping[str, Handler]") -> None:
        """Bits are taken at once, while the chain still holds the number that they are the sign of."""
        for node in nodes:
            self.run(node, handlers)

    def run(self, node: Node, handlers: "Mapping[str, Handler]") -> None:
        """Handle one node."""
        if node.op not in handlers:
            raise NotNative(f"{node.op} has no kernel")
        self.layer = node.layer
        for reference in node.references():
            if isinstance(reference, Value):
                self.uses[reference.value] -= 1
        spec = node.outputs[0]
        self.made[spec.name] = handlers[node.op](self, node, spec.sized(1)[1:])


from collections.abc import Callable  # noqa: E402

Handler = Callable[[Compiler, Node, tuple[int, ...]], Made]


def composed(first: Op, second: Op) -> Op:
    """One affine operation for two."""
    assert first.a is not None and first.b is not None and second.a is not None and second.b is not None
    a = first.a.astype(np.float64) * second.a
    b = first.b.astype(np.float64) * second.a + second.b
    return Op(Code.AFFINE, a=per_channel(a), b=per_channel(b))


def number(argument: Argument) -> float:
    """A scalar argument."""
    if isinstance(argument, NonFinite):
        return float(argument.number)
    if isinstance(argument, bool | int | float):
        return float(argument)
    raise NotNative(f"an operand is {argument!r} where a number is known")


def pair(argument: Argument, default: int | None = None) -> tuple[int, int]:
    """An integer or two of them, or an empty list for the default."""
    values = argument if isinstance(argument, tuple) else (argument,)
    if not values or values == (None,):
        values = (default,)
    numbers = [int(v) for v in values if isinstance(v, int)]
    if len(numbers) != len(values):
        raise NotNative(f"an argument is {argument!r} where integers are known")
    return (numbers[0], numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])


def geometry(node: Node, kernel: tuple[int, int], size: tuple[int, int], *, stride: int | None = 1) -> Geometry:
    """Geometry from the arguments that convolutions and pools share."""
    given = node.arguments
    strides = pair(given.get("stride", ()), stride) if stride is not None else pair(given.get("stride", ()) or kernel)
    padding, dilation = pair(given.get("padding", 0), 0), pair(given.get("dilation", 1), 1)
    out = node.outputs[0].sized(1)[2:] or (1, 1)
    return Geometry(kernel, strides, dilation, padding, (out[0], out[1]))
