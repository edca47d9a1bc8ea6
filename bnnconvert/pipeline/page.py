"""What a page about a model or a run shows: both graphs, the layers, the training."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from torch.fx import GraphModule, Node

from bnnconvert.errors import UsageError
from bnnconvert.exporters.draft import module_bytes
from bnnconvert.graph import inner_graphs, module_of, scope_of, shape_of
from bnnconvert.load.task import load_task
from bnnconvert.pipeline.convert import TRACED
from bnnconvert.pipeline.look import Look
from bnnconvert.pipeline.student import Student, probe_input
from bnnconvert.report.units import as_bytes, as_count, as_inputs
from bnnconvert.runtime import Session
from bnnconvert.shapes import propagate_shapes
from bnnconvert.values.inputs import described
from bnnconvert.values.page import Drawing, Page, Step


def page_of_target(look: Look) -> Page:
    """Page about a model or a run.

    Raises: UsageError for an artifact, whose graph is no longer the user's.
    """
    opened = look.found
    if isinstance(opened, Session):
        raise UsageError(f"{look.target}: --html shows models and runs; give the run that this file was exported from.")
    if isinstance(opened, Student):
        return page_of_student(opened)
    layers = tuple({"name": f.path} | asdict(f) | {"macs": f.macs, "float_bytes": f.float_bytes} for f in opened.facts)
    totals = {"macs": sum(f["macs"] for f in layers), "model_bytes": module_bytes(opened.module)}
    facts = (*opened.notes, f"Input {as_inputs(described(opened.inputs))}; {as_bytes(totals['model_bytes'])}.")
    return Page(look.target, facts, tuple(_drawings(opened.graph, {})), (), layers, totals)


def page_of_student(student: Student) -> Page:
    """Page about a conversion: its graphs, its plan, and its training where there was one."""
    plan = student.plan
    decisions = {layer.facts.path: layer.decision for layer in plan.layers}
    propagate_shapes(student.model, *(x[:TRACED] for x in probe_input(student.inputs)))
    data = plan.to_json()
    facts = [*student.notes, f"Recipe {plan.recipe}, input {as_inputs(described(student.inputs))}."]
    facts += [f"{r.name} ({r.promise}): {r.count} places" for r in plan.rewrites if r.count]
    binary, macs = (as_count(data["totals"][key]) for key in ("binary_macs", "macs"))
    facts.append(f"{binary} of {macs} multiply-adds are binary.")
    name = "a model" if student.run is None else student.run.name
    return Page(
        f"{name} by {plan.recipe}",
        tuple(facts),
        tuple(_drawings(student.teacher, decisions)),
        tuple(_drawings(student.model, decisions)),
        tuple(data["layers"]),
        data["totals"],
        tuple(_history(student)),
        load_task(student.task).metric if student.run is not None else "accuracy",
    )


def _history(student: Student) -> Iterator[dict[str, Any]]:
    log = None if student.run is None else student.run.file("metrics.jsonl")
    if log is not None and log.exists():
        yield from (json.loads(line) for line in log.read_text("utf-8").splitlines())


def _drawings(graph: GraphModule, decisions: Mapping[str, str], path: str = "") -> Iterator[Drawing]:
    before = f"{path}." if path else ""
    yield Drawing(path, tuple(_step(graph, node, before, decisions) for node in graph.graph.nodes))
    for name, part in inner_graphs(graph):
        yield from _drawings(part, decisions, before + name)


def _step(graph: GraphModule, node: Node, before: str, decisions: Mapping[str, str]) -> Step:
    module = module_of(graph, node)
    scope = scope_of(node)
    path = before + (str(node.target) if module is not None else scope)
    kinds = {"placeholder": "input", "output": "output", "get_attr": "parameter"}
    kind = type(module).__name__ if module is not None else kinds.get(node.op)
    decision = decisions.get(path) if module is not None else None
    kind = kind or str(getattr(node.target, "__name__", node.target))
    return Step(node.name, path, kind, shape_of(node), tuple(n.name for n in node.all_input_nodes), decision)
