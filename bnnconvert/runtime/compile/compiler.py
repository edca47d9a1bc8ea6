"""From a program to a plan: which operators share a step, where values are stored, what becomes a constant.

An operator that works number by number joins the chain of the step that makes its operand, as long as that operand is
what the chain holds last. So a residual block is one step: convolution, batch norm, addition, activation, and the
bits of the next layer, in one pass over memory.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bnnconvert.artifact.schema import Array
from bnnconvert.runtime.compile.made import SAMPLES, Made, Places, View, runs_of
from bnnconvert.runtime.compile.order import read_as_tokens
from bnnconvert.runtime.compile.plan import (
    LANES,
    WRITES,
    Code,
    Dot,
    Image,
    Kind,
    NotNative,
    Op,
    Plan,
    Step,
    StepKind,
    per_channel,
)
from bnnconvert.values.program import Argument, Batch, Constant, Node, Value, ValueSpec

ENCODE = "bnnconvert.encode"


class Compiler:
    """State while the nodes of a program are walked."""

    def __init__(self, specs: Mapping[str, ValueSpec], tensors: Mapping[str, Array]) -> None:
        self.specs, self.tensors = specs, tensors
        """Every value and tensor of the program, of which `compile` takes a part."""
        self.steps: list[Step] = []
        self.made: dict[str, Made] = {}
        self.names: defaultdict[Made, list[str]] = defaultdict(list)
        """Of each value; another shape or order of axes is a value of its own."""
        self.top: dict[Step, Made] = {}
        """What each step's chain holds last."""
        self.uses: Counter[str] = Counter()
        """Reads of each value that are still to come."""
        self.numbers: dict[int, int] = {}
        """Place of each node, known by identity, as comparing all fields takes longer than compiling."""
        self.at = -1
        """Number of the node that is being handled."""
        self.layer = ""
        self.handlers: Mapping[str, Handler] = {}
        self.as_tokens: set[str] = set()
        """Values of which some node reads the last axis as channels."""
        self.bare: list[tuple[Image, int]] = []
        """Images that may have no halo, and the number of the node that says so."""

    # What operators need

    def value(self, argument: Argument) -> Made:
        """An argument that is a value or a tensor of the file."""
        if isinstance(argument, Value):
            self._give_place(self.made[argument.value], argument.value)
            return self.made[argument.value]
        if isinstance(argument, Constant):
            tensor = self.tensors[argument.tensor]
            return Made(tensor.shape, constant=tensor)
        raise NotNative(f"an operand is {argument!r}")

    def view(self, argument: Argument) -> View:
        """Where the numbers of an argument that is a value lie."""
        made = self.made[argument.value] if isinstance(argument, Value) else self.value(argument)
        if made.view is not None:
            return made.view
        if self.stored(made).kind != Kind.FLOATS:
            raise NotNative("bits are put in other places")
        return View.of(made, self.at)

    def same_for_all(self, numbers: Array, order: Made) -> Made:
        """A value with the same numbers for all samples, which lies like another one of its shape.

        Shapes: numbers (parts, ...).
        """
        made = order.like(image=order.new_image())
        laid = numbers if order.tokens else np.moveaxis(numbers, 1, -1)
        step = Step(StepKind.CONSTANT, self.layer, output=made.image, weights=laid.astype(np.float32))
        # In front of the step that makes the other one, whose chain may then take it in.
        self.steps.insert(len(self.steps) if order.step is None else self.steps.index(order.step), step)
        return made

    def lying_like(self, made: Made, order: Made) -> Made:
        """The same value where it lies as another one, of its shape, does; it is moved where it does not."""
        if made.tokens == order.tokens and made.size == order.size:
            return made
        self.stored(made)
        after = Made(made.shape, parts=made.parts)
        self.join(after, [(View.of(made, self.at), all_of(made))], [order])
        return after

    def with_channels(self, made: Made, *, last: bool) -> Made:
        """The same value with its channels on the last axis, as of tokens, or on the first behind the samples."""
        wanted = last and len(made.shape) > 1
        return made if made.tokens == wanted else self.lying_like(made, made.ordered(tokens=wanted))

    def as_grid(self, made: Made) -> Made:
        """The same value as an image over which windows move."""
        return self.lying_like(made, made.ordered(tokens=False))

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

    def extended(self, before: Made, op: Op) -> Made:
        """What an operation on each number makes of a value, in the chain of the step that makes the value."""
        step = before.step
        if step is None or self.top[step] is not before or self.is_late(op.image, step):
            step = self.continued(before)
        elif self.is_used_later(before):
            self.stored(before)
        if op.code == Code.AFFINE and step.chain and step.chain[-1].code == Code.AFFINE:
            step.chain[-1] = composed(step.chain[-1], op)
        else:
            step.chain.append(op)
        self.top[step] = after = before.like(step=step)
        return after

    def continued(self, before: Made) -> Step:
        """A new step whose chain begins with a value."""
        step = Step(StepKind.MAP, self.layer, input=self.stored(before))
        self.start(step, before.like())
        return step

    def ending_with(self, made: Made) -> Step:
        """The step whose chain holds a value last, begun now if there is none."""
        step = made.step
        return self.continued(made) if step is None or self.top[step] is not made else step

    def stored(self, made: Made) -> Image:
        """The image that holds a value, made now if there is none."""
        if made.image is None:
            self._give_place(made)
        if made.image is None:
            if made.step is None or self.top[made.step] is not made:
                raise NotNative("a constant is used as a value")
            made.image = made.new_image()
            made.step.chain.append(Op(Code.STORE, made.image))
        return made.image

    def _give_place(self, made: Made, name: str = "") -> None:
        """Let a value that is only a view have its numbers to itself, in the order in which they are read."""
        view = made.view
        if view is None:
            return
        try:
            self.join(made, [(view, all_of(made))], self.orders(made, name))
        except NotNative:
            self.at = view.maker  # what moved the numbers is at fault, not what reads them
            raise

    def orders(self, made: Made, name: str) -> list[Made]:
        """How a value of that name may lie: its channels last where it is read so, else in any way."""
        sides = [True] if name in self.as_tokens else [False, True][: len(made.shape)]
        return [made.ordered(tokens=side) for side in sides]

    def join(
        self, made: Made, parts: Sequence[tuple[View, Places]], orders: Sequence[Made], *, rest: bool = False
    ) -> None:
        """Let a value be made of numbers of others, each with its places in the value, by the fewest moves.

        `orders` are values that lie as it may; with `rest` there are places that nothing comes to, which get zeros.
        """
        if not math.prod(made.shape):
            raise NotNative("a value has no numbers")
        moves = [(part, part.of_one_sample().reshape(-1), places) for part, places in parts if places.size]
        found = []
        for order in orders:
            lies = View.of(order, self.at).places[: order.parts].reshape(-1)
            runs = [(part.base, runs_of(source, lies[places.reshape(-1)])) for part, source, places in moves]
            found.append((sum(len(numbers) for _, numbers in runs), order, runs))
        _, order, runs = min(found, key=lambda one: one[0])
        made.tokens, made.lies, made.view = order.tokens, order.lies, None
        made.image = made.new_image()
        for place, (base, numbers) in enumerate(runs):
            step = Step(StepKind.MOVE, self.layer, input=self.stored(base), output=made.image, runs=numbers)
            step.clears = rest and place == 0
            self.steps.append(step)

    def is_used_later(self, made: Made) -> bool:
        """Whether nodes that are still to come read it."""
        return any(self.uses[name] > 0 for name in self.names[made])

    def is_fresh(self, made: Made, step: Step) -> bool:
        """Whether a value is a binary layer's accumulators, in whole blocks, and nothing else needs them."""
        fills_blocks = step.groups == 1 or made.channels // step.groups % LANES == 0
        is_binary = step.dot == Dot.BINARY and step.kind == StepKind.CONV and not step.chain
        return is_binary and fills_blocks and self.top[step] is made and not self.is_used_later(made)

    def is_read(self, image: Image | None) -> bool:
        """Whether a step reads an image."""
        return any(image in step.reads() for step in self.steps)

    def is_late(self, image: Image | None, step: Step) -> bool:
        """Whether an image is written after `step` has run."""
        if image is None:
            return False
        return any(
            later.output is image or any(op.image is image and op.code in WRITES for op in later.chain)
            for later in self.steps[self.steps.index(step) :]
        )

    def order(self, made: Made) -> int:
        """When a value is made, for choosing the operand whose chain another one joins."""
        if made.step is None or self.top[made.step] is not made:
            return -1
        return self.steps.index(made.step)

    # The walk

    def compile(
        self, nodes: Sequence[Node], inputs: Sequence[str], outputs: Sequence[str], handlers: "Mapping[str, Handler]"
    ) -> Plan:
        """Plan of some nodes of the program, neighbours in its order.

        Raises: NotNative; `at` then says which node it was, counted within `nodes`, or -1 for the first one.
        """
        self.uses.update(name for node in nodes for name in node.reads)
        self.uses.update(outputs)
        self.handlers = handlers
        self.numbers = {id(node): number for number, node in enumerate(nodes)}
        for name in (*inputs, *outputs):
            if not _crosses(self.specs[name]):
                self.at = _maker(nodes, name)
                raise NotNative(f"{_described(self.specs[name])} goes in or out")
        encoders: dict[str, list[Node]] = {}
        for node in nodes:
            if node.op == ENCODE:
                x = node.arguments["x"]
                assert isinstance(x, Value)
                encoders.setdefault(x.value, []).append(node)
        self.as_tokens = read_as_tokens(nodes, self.specs)
        for name in inputs:
            parts, *shape = self.specs[name].sized(1)
            made = Made(tuple(shape), tokens=name in self.as_tokens, parts=parts)
            made.image = made.new_image()
            self.steps.append(Step(StepKind.INPUT, name, output=made.image, tokens=made.tokens))
            self._call(made, name)
        # Bits are taken as soon as there is the number that they are the sign of, while its chain still holds it.
        ready = [node for name in inputs for node in encoders.get(name, ())]
        for node in nodes:
            ready += [node] if node.op != ENCODE else []
            while ready:
                self._run(current := ready.pop(0), handlers)
                ready = [n for spec in current.outputs for n in encoders.get(spec.name, ())] + ready
        for name in outputs:
            self.at = _maker(nodes, name)
            made = self.made[name]
            self.steps.append(Step(StepKind.OUTPUT, name, input=self.stored(made), tokens=made.tokens))
        for image, number in self.bare:
            if any(image.halo):
                self.at = number
                raise NotNative("its operands are padded for another layer")
        for step in self.steps:
            _take_affine(step)
        return Plan(self.steps)

    def _run(self, node: Node, handlers: "Mapping[str, Handler]") -> None:
        self.at, self.layer = self.numbers[id(node)], node.layer
        self.uses.subtract(node.reads)
        for spec in node.outputs:
            if node.op.startswith("aten.") and spec.dtype not in ("float32", "int32"):
                raise NotNative(f"{node.op} gives {spec.dtype}")
        found = handlers[node.op](self, node)
        for spec, made in zip(node.outputs, found if isinstance(found, list) else [found], strict=True):
            given = (SAMPLES * made.parts, *made.shape) if made.view is None else made.view.places.shape
            if made.constant is None and given != spec.sized(SAMPLES):
                raise NotNative(f"for {SAMPLES} samples it declares the shape {spec.sized(SAMPLES)} and gives {given}")
            self._call(made, spec.name)
        for name in node.reads:  # views may be large
            if self.uses[name] == 0 and name in self.made:
                self.names[self.made.pop(name)].remove(name)

    def _call(self, made: Made, name: str) -> None:
        self.made[name] = made
        self.names[made].append(name)


Handler = Callable[[Compiler, Node], Made | list[Made]]


def all_of(made: Made) -> Places:
    """The place of each number of a value in itself."""
    return np.arange(made.parts * math.prod(made.shape), dtype=np.int32)


def _take_affine(step: Step) -> None:
    """Let the sum of accumulators do the affine operation that follows it."""
    if step.dot in (Dot.BINARY, Dot.BYTES) and step.scale is None and step.chain and step.chain[0].code == Code.AFFINE:
        op = step.chain.pop(0)
        step.scale, step.bias = op.a, op.b


def composed(first: Op, second: Op) -> Op:
    """One affine operation for two."""
    assert first.a is not None
    assert first.b is not None
    assert second.a is not None
    assert second.b is not None
    a = first.a.astype(np.float64) * second.a
    b = first.b.astype(np.float64) * second.a + second.b
    return Op(Code.AFFINE, a=per_channel(a), b=per_channel(b))


def _crosses(spec: ValueSpec) -> bool:
    """Whether a value can go into or out of the engine: floats, samples or their parts on the first axis alone."""
    samples = [number for number, size in enumerate(spec.shape) if isinstance(size, Batch)]
    return spec.dtype == "float32" and len(spec.shape) >= 2 and samples == [0]


def _described(spec: ValueSpec) -> str:
    sizes = ("N" if size == Batch(batch=1) else "?" if isinstance(size, Batch) else str(size) for size in spec.shape)
    return f"a {spec.dtype} value of the shape ({', '.join(sizes)})"


def _maker(nodes: Sequence[Node], name: str) -> int:
    """Number of the node that makes a value, or else of the first that reads it."""
    for number, node in enumerate(nodes):
        if any(spec.name == name for spec in node.outputs):
            return number
    reads = (name in node.reads for node in nodes)
    return next((number for number, does in enumerate(reads) if does), 0)
