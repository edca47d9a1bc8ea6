"""Runs a program part by part: native parts in the engine, all other nodes in numpy and torch.

Without the engine every node is a part of its own; that form is the oracle of the native one.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bnnconvert.artifact.schema import Array
from bnnconvert.runtime.execute import Call, load_torch, needs_torch, prepare
from bnnconvert.runtime.native import Engine, RefusedPlan, StepTime
from bnnconvert.runtime.segments import Part, alone, parts_of
from bnnconvert.values.program import Program

_torch_threads = threading.Lock()
"""Torch's number of threads belongs to the process, so only one session may set and restore it at a time."""

Values = dict[str, Array]


@dataclass(frozen=True)
class _Portable:
    call: Call
    names: tuple[str, ...]
    layer: str

    def run(self, values: Values, samples: int) -> None:
        values.update(zip(self.names, self.call(values, samples), strict=True))

    def measure(self, values: Values, samples: int) -> list[StepTime]:
        start = time.perf_counter()
        self.run(values, samples)
        return [StepTime(self.layer, "outside the engine", "", time.perf_counter() - start)]


@dataclass(frozen=True)
class _Native:
    engine: Engine
    part: Part

    def run(self, values: Values, samples: int) -> None:
        inputs = [np.ascontiguousarray(values[name]) for name in self.part.inputs]
        values.update(zip(self.part.outputs, self.engine.run(inputs, samples), strict=True))

    def measure(self, values: Values, samples: int) -> list[StepTime]:
        with self.engine.profiled():
            self.run(values, samples)
        return self.engine.steps()


class Executor:
    """A program made ready to run; `isa` is the engine's instruction set, None for no engine.

    Raises: ArtifactError for a program that does not run; UsageError where it needs torch and there is none.
    """

    def __init__(
        self, program: Program, tensors: Mapping[str, Array], where: str, *, threads: int, isa: str | None
    ) -> None:
        self.program, self.threads, self.where, self.isa = program, threads, where, isa
        self.reasons: dict[int, str] = {}
        """Why nodes are not native, by their number."""
        if isa is None:
            self.parts = alone(program)
        else:
            self.parts, self.reasons = parts_of(program, tensors)
        specs = program.specs()
        engines = self._open(isa) if isa is not None else {}
        portable = [part.nodes[0] for part in self.parts if part.plan is None]
        self.uses_torch = needs_torch(portable)
        calls = iter(prepare(portable, specs, tensors, where))
        self.runners: list[_Portable | _Native] = []
        for part in self.parts:
            if part.plan is None:
                (node,) = part.nodes
                self.runners.append(_Portable(next(calls), tuple(spec.name for spec in node.outputs), node.layer))
            else:
                self.runners.append(_Native(engines[part.plan], part))
        self.dead = self._last_uses()

    def _open(self, isa: str) -> dict[bytes, Engine]:
        """Engines of the plans; a part whose plan is refused runs node by node instead."""
        specs, engines = self.program.specs(), {}
        parts, first = [], 0
        for part in self.parts:
            last = first + len(part.nodes)
            if part.plan is not None:
                shapes = [[specs[name].sized(1) for name in names] for names in (part.inputs, part.outputs)]
                try:
                    engines[part.plan] = Engine(part.plan, *shapes, threads=self.threads, isa=isa)
                except RefusedPlan as refusal:
                    self.reasons.update(dict.fromkeys(range(first, last), str(refusal)))
            refused = part.plan is not None and part.plan not in engines
            parts += alone(self.program, first, last) if refused else [part]
            first = last
        self.parts = parts
        return engines

    def place(self, number: int) -> Literal["engine", "numpy", "torch"]:
        """Where a node of the program runs."""
        if self.isa is not None and number not in self.reasons:
            return "engine"
        return "torch" if needs_torch([self.program.nodes[number]]) else "numpy"

    @property
    def engines(self) -> list[Engine]:
        """Engines of the native parts, in order."""
        return [runner.engine for runner in self.runners if isinstance(runner, _Native)]

    @property
    def is_native(self) -> bool:
        """Whether nothing runs outside the engine."""
        return all(isinstance(runner, _Native) for runner in self.runners)

    def run(self, inputs: Sequence[Array], *, keep: bool = False) -> Values:
        """Values by name: those of the output, or with `keep` every one that passes between parts."""
        values = self._named(inputs)
        with self._torch_on_threads():
            for runner, dead in zip(self.runners, self.dead, strict=True):
                runner.run(values, len(inputs[0]))
                if not keep:
                    for name in dead:
                        del values[name]
        return values

    def measure(self, inputs: Sequence[Array]) -> list[StepTime]:
        """Run with a clock around each step of the engine and each node outside."""
        values = self._named(inputs)
        with self._torch_on_threads():
            return [step for runner in self.runners for step in runner.measure(values, len(inputs[0]))]

    def _named(self, inputs: Sequence[Array]) -> Values:
        return {spec.name: x for spec, x in zip(self.program.inputs, inputs, strict=True)}

    def _last_uses(self) -> list[list[str]]:
        """For each part, the values that nobody needs after it."""
        seen = set(self.program.output.values())
        dead: list[list[str]] = []
        for part, runner in zip(reversed(self.parts), reversed(self.runners), strict=True):
            made = part.outputs if isinstance(runner, _Native) else runner.names
            names = dict.fromkeys((*made, *part.inputs))
            dead.append([name for name in names if name not in seen])
            seen.update(names)
        return dead[::-1]

    @contextmanager
    def _torch_on_threads(self) -> Iterator[None]:
        """Give torch this executor's number of threads, and its own one back afterwards."""
        if not self.uses_torch:
            yield
            return
        torch = load_torch(self.where)
        with _torch_threads:
            before = torch.get_num_threads()
            try:
                torch.set_num_threads(self.threads)
                yield
            finally:
                torch.set_num_threads(before)
