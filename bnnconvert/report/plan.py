"""What a recipe does to a model, as tables: its layers with their decisions, and its rewrites."""

from bnnconvert.report.table import Column, Table, number
from bnnconvert.report.tree import layer_tree
from bnnconvert.report.units import as_bytes, as_count, as_inputs, as_ratio, as_shape
from bnnconvert.values.inputs import described
from bnnconvert.values.plan import LayerPlan, Plan


def plan_table(plan: Plan) -> Table:
    """One row per weight layer, in execution order. Bytes are those of weights and bias."""
    columns = (
        Column("layer"),
        Column("kind"),
        Column("weight"),
        Column("decision"),
        Column("reason"),
        number("float B"),
        number("packed B"),
        number("mult-adds"),
    )
    rows = tuple(
        (
            layer.facts.path,
            layer.facts.kind,
            as_shape(layer.now.weight_shape),
            _decision(layer),
            layer.reason,
            f"{layer.float_bytes:,}",
            f"{layer.bytes:,}",
            as_count(layer.now.macs),
        )
        for layer in plan.layers
    )
    totals = plan.totals
    total = (
        f"{totals['layers']} layers",
        "",
        "",
        f"{totals['binary_layers']} binary",
        "",
        f"{totals['float_bytes']:,}",
        f"{totals['packed_bytes']:,}",
        as_count(totals["macs"]),
    )
    return Table(f"Plan: recipe {plan.recipe}, input {as_inputs(described(plan.inputs))}", columns, rows, total)


def plan_tree(plan: Plan) -> Table:
    """The same layers in the tree of modules, with sums for each module."""
    layers = [
        {"name": p.facts.path, "kind": p.facts.kind, "weight_shape": p.now.weight_shape, "reason": p.reason}
        | {"output_shape": p.now.output_shape, "decision": _decision(p), "macs": p.now.macs}
        | {"float_bytes": p.float_bytes, "packed_bytes": p.bytes}
        for p in plan.layers
    ]
    return layer_tree(f"Plan: recipe {plan.recipe}, input {as_inputs(described(plan.inputs))}", layers)


def _decision(layer: LayerPlan) -> str:
    if layer.predict is not None:
        return f"float, predicted at {layer.predict:.3g}"
    return "int8" if layer.int8 else layer.decision


def rewrites_table(plan: Plan) -> Table:
    """One row per rewrite, in the order in which they ran."""
    columns = (Column("rewrite"), Column("promise"), number("places"), number("refused"))
    rows = tuple((r.name, r.promise, str(r.count), str(len(r.refusals))) for r in plan.rewrites)
    return Table("Rewrites", columns, rows)


def plan_notes(plan: Plan) -> list[str]:
    """Sentences below the tables: what was refused and why, the sizes, the warnings."""
    notes = [f"{rewrite.name} refused {refusal}" for rewrite in plan.rewrites for refusal in rewrite.refusals]
    share = plan.totals["binary_macs"] / plan.totals["macs"] if plan.totals["macs"] else 0.0
    notes.append(f"{share:.1%} of the multiply-adds are binary.")
    if plan.predicted_bytes is not None:
        ratio = as_ratio(plan.model_bytes, plan.predicted_bytes)
        sizes = f"The model takes {as_bytes(plan.model_bytes)}, its packed tensors {as_bytes(plan.predicted_bytes)}"
        notes.append(f"{sizes}: {ratio}." if ratio else f"{sizes}.")
    return notes
