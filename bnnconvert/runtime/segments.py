"""Which nodes the native engine runs: the program in parts, each native or a single node of the portable executor.

Neighbouring native nodes form one part, so that they share steps and their values stay in the engine. What goes into
a part or comes out of it is float32; a node whose bits or accumulators are needed outside runs portably.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bnnconvert.artifact.schema import Array
from bnnconvert.runtime.compile.compiler import Compiler, NotNative
from bnnconvert.runtime.compile.operators import HANDLERS
from bnnconvert.runtime.compile.plan import Plan
from bnnconvert.values.program import Node, Program, Value


@dataclass(frozen=True)
class Part:
    """A run of nodes; `plan` where it is native."""

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    plan: Plan | None = None


def parts_of(program: Program, tensors: Mapping[str, Array]) -> tuple[list[Part], dict[int, str]]:
    """The program's parts in order, and for each node that is not native why."""
    reasons: dict[int, str] = {}
    while True:
        parts: list[Part] = []
        failed = None
        for first, last in _runs(len(program.nodes), reasons):
            nodes = program.nodes[first:last]
            inputs, outputs = _crossing(program, first, last)
            if first in reasons:
                parts.append(Part(nodes, inputs, outputs))
                continue
            compiler = Compiler(program, tensors)
            try:
                plan = compiler.compile(nodes, inputs, outputs, HANDLERS)
            except NotNative as error:
                failed = first + max(compiler.at, 0), str(error)
                break
            parts.append(Part(nodes, inputs, outputs, plan))
        if failed is None:
            return parts, reasons
        reasons[failed[0]] = failed[1]


def alone(program: Program) -> list[Part]:
    """Every node as a part of its own, none of them native."""
    return [Part((node,), *_crossing(program, i, i + 1)) for i, node in enumerate(program.nodes)]


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


def _crossing(program: Program, first: int, last: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Values that nodes [first, last) read from outside, and those of theirs that are read outside."""
    inside = {spec.name for node in program.nodes[first:last] for spec in node.outputs}

    def reads(nodes: Sequence[Node]) -> dict[str, None]:
        return dict.fromkeys(r.value for node in nodes for r in node.references() if isinstance(r, Value))

    inputs = tuple(name for name in reads(program.nodes[first:last]) if name not in inside)
    elsewhere = reads(program.nodes[last:]) | dict.fromkeys(program.output.values())
    return inputs, tuple(name for name in elsewhere if name in inside)
