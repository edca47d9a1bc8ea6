"""Which nodes the native engine runs: the program in parts, each native or a single node of the portable executor.

Neighbouring native nodes form one part, so that they share steps and their values stay in the engine. What goes into
a part or comes out of it is float32; a node whose bits or accumulators are needed outside runs portably.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bnnconvert.artifact.schema import Array
from bnnconvert.runtime.compile.compiler import Compiler
from bnnconvert.runtime.compile.operators.table import HANDLERS
from bnnconvert.runtime.compile.plan import NotNative
from bnnconvert.runtime.compile.write import plan_bytes
from bnnconvert.values.program import Node, Program

UNUSUAL = (ValueError, TypeError, LookupError, ArithmeticError, AssertionError, struct.error)
"""What a compiler of sound programs meets in a file that is none; the portable executor then says what is wrong."""


@dataclass(frozen=True)
class Part:
    """A run of nodes; `plan` where it is native, as the engine reads it."""

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    plan: bytes | None = None


def parts_of(program: Program, tensors: Mapping[str, Array]) -> tuple[list[Part], dict[int, str]]:
    """The program's parts in order, and for each node that is not native why."""
    reasons = {i: f"{node.op} has no kernel" for i, node in enumerate(program.nodes) if node.op not in HANDLERS}
    crossings = _Crossings(program)
    plans: dict[tuple[int, int], bytes] = {}
    specs = program.specs()
    while True:
        failed = None
        for first, last in _runs(len(program.nodes), reasons):
            if first in reasons or (first, last) in plans:
                continue
            compiler = Compiler(specs, tensors)
            try:
                plan = compiler.compile(program.nodes[first:last], *crossings.of(first, last), HANDLERS)
                plans[first, last] = plan_bytes(plan)
            except NotNative as error:
                failed = first + max(compiler.at, 0), str(error)
            except UNUSUAL as error:
                failed = first + max(compiler.at, 0), f"unusual arguments ({type(error).__name__})"
            if failed is not None:
                break
        if failed is None:
            break
        reasons[failed[0]] = failed[1]
    runs = _runs(len(program.nodes), reasons)
    parts = [Part(program.nodes[a:b], *crossings.of(a, b), plans.get((a, b))) for a, b in runs]
    return parts, reasons


def alone(program: Program, first: int = 0, last: int | None = None) -> list[Part]:
    """Every node, or those of [first, last), as a part of its own, none of them native."""
    crossings = _Crossings(program)
    numbers = range(len(program.nodes))[first:last]
    return [Part((program.nodes[i],), *crossings.of(i, i + 1)) for i in numbers]


def _runs(count: int, apart: Mapping[int, str]) -> Sequence[tuple[int, int]]:
    """Ranges of nodes: each of `apart` alone, the others together with their neighbours."""
    runs, first = [], 0
    for i in range(count):
        if i in apart:
            if first < i:
                runs.append((first, i))
            runs.append((i, i + 1))
            first = i + 1
    if first < count:
        runs.append((first, count))
    return runs


class _Crossings:
    """Which values go into ranges of nodes, and which come out of them."""

    def __init__(self, program: Program) -> None:
        self.nodes = program.nodes
        self.last_read: dict[str, int] = {}
        for number, node in enumerate(program.nodes):
            self.last_read.update(dict.fromkeys(node.reads, number))
        self.last_read.update(dict.fromkeys(program.output.values(), len(program.nodes)))

    def of(self, first: int, last: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Values that nodes [first, last) read from outside, and those of theirs that are read outside."""
        nodes = self.nodes[first:last]
        made = dict.fromkeys(spec.name for node in nodes for spec in node.outputs)
        read = dict.fromkeys(name for node in nodes for name in node.reads)
        inputs = tuple(name for name in read if name not in made)
        return inputs, tuple(name for name in made if self.last_read.get(name, -1) >= last)
