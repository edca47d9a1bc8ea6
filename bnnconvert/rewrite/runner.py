"""The runner: find, apply, lint, count, and compare with the promise. Rewrites do none of this themselves."""

import torch
from torch import Tensor
from torch.fx import GraphModule

from bnnconvert.errors import VerificationError
from bnnconvert.graph import inner_graphs, inputs_inside, restore_order
from bnnconvert.rewrite import REWRITES
from bnnconvert.rewrite.as_images import AsImages
from bnnconvert.rewrite.base import Refusal, Rewrite, Site
from bnnconvert.rounding import is_rounding
from bnnconvert.shapes import propagate_shapes
from bnnconvert.values.plan import Plan, RewriteRecord
from bnnconvert.values.recipe import Recipe
from bnnconvert.values.tables import build_row

_MAX_ROUNDS = 100
ENOUGH = 1
"""Samples of the probe on which a promise is checked."""


def build_rewrites(recipe: Recipe) -> list[Rewrite]:
    """The recipe's rewrites, in its order.

    Raises: UsageError for an unknown name or option.
    """
    return [
        build_row(REWRITES, named, where=f"recipe {recipe.name!r}, rewrites[{i}]", what="rewrite")
        for i, named in enumerate(recipe.rewrites)
    ]


def run_rewrites(graph: GraphModule, plan: Plan, rewrites: list[Rewrite], *, probe: tuple[Tensor, ...]) -> Plan:
    """Rewrite `graph`, and the graphs inside it, in place; the plan comes back with what happened.

    Layers that are convolutions in other clothes become such first, whatever the recipe says.

    Raises: VerificationError if a rewrite breaks its promise or does not come to an end.
    """
    return _rewrite(graph, plan, rewrites, probe, tuple(x[:ENOUGH] for x in probe))


def _rewrite(
    graph: GraphModule, plan: Plan, rewrites: list[Rewrite], probe: tuple[Tensor, ...], checked: tuple[Tensor, ...]
) -> Plan:
    records: dict[str, RewriteRecord] = {}
    inputs = inputs_inside(graph, probe)
    for path, part in inner_graphs(graph):
        made = _rewrite(part, plan.part(path), rewrites, inputs[path], inputs[path])
        plan = plan.with_part(path, made)
        for record in made.rewrites:
            _note(records, record.inside(path))
    first = AsImages()
    needed = any(isinstance(site, Site) for site in first.find(graph, plan))
    for rewrite in [first, *rewrites] if needed else rewrites:
        _note(records, _run(graph, plan, rewrite, probe, checked))
        plan = rewrite.replan(graph, plan)
    return plan.with_rewrites(list(records.values()))


def _note(records: dict[str, RewriteRecord], record: RewriteRecord) -> None:
    records[record.name] = records[record.name] + record if record.name in records else record


def _run(
    graph: GraphModule, plan: Plan, rewrite: Rewrite, probe: tuple[Tensor, ...], checked: tuple[Tensor, ...]
) -> RewriteRecord:
    before: list[Tensor] | None = None
    count, refusals = 0, dict[str, None]()
    for _ in range(_MAX_ROUNDS):
        found = list(rewrite.find(graph, plan))
        refusals |= dict.fromkeys(f"{r.path}: {r.reason}" for r in found if isinstance(r, Refusal))
        sites = [s for s in found if isinstance(s, Site)]
        if not sites:
            break
        if count == 0 and rewrite.promise.rtol is not None:
            before = _evaluate(graph, checked)
        for site in sites:
            rewrite.apply(graph, site)
        restore_order(graph)
        count += len(sites)
    else:
        raise VerificationError(
            f"Rewrite {rewrite.name!r} still finds work after {_MAX_ROUNDS} rounds; please report this model."
        )
    if count == 0:
        return RewriteRecord(name=rewrite.name, promise=rewrite.promise.name, count=0, refusals=tuple(refusals))
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    graph.recompile()
    propagate_shapes(graph, *probe)
    if before is not None:
        _require_close(rewrite, before, _evaluate(graph, checked))
    return RewriteRecord(name=rewrite.name, promise=rewrite.promise.name, count=count, refusals=tuple(refusals))


def _evaluate(graph: GraphModule, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    graph.eval()
    with torch.no_grad():
        output = graph(*inputs)
    return _tensors(output)


def _tensors(output: object) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    return [t for part in parts for t in _tensors(part)]


def _require_close(rewrite: Rewrite, before: list[Tensor], after: list[Tensor]) -> None:
    promise = rewrite.promise
    assert promise.rtol is not None
    assert promise.atol is not None
    for old, new in zip(before, after, strict=True):
        if not is_rounding(old, new, rtol=promise.rtol, atol=promise.atol):
            worst = float((old - new).abs().max())
            raise VerificationError(
                f"Rewrite {rewrite.name!r} promises {promise.name} but changed the output by {worst:.3g}; "
                "please report this model."
            )
