"""What a model, a run or an artifact consists of, as a table."""

from typing import Any

from bnnconvert.report.table import Column, Table
from bnnconvert.report.tree import layer_tree
from bnnconvert.report.units import as_bytes, as_count, as_inputs, as_shape
from bnnconvert.values.report import Inspection


def inspection_table(found: Inspection) -> Table:
    """The tree of layers, or one row per node of an artifact's program."""
    if found.kind == "artifact":
        nodes = (Column("node"), Column("operator"), Column("layer"), Column("output"), Column("runs in"))
        rows = tuple(
            (str(n["name"]), str(n["op"]), str(n["layer"]), ", ".join(as_shape(s) for s in n["shape"]), n["runs_in"])
            for n in found.layers
        )
        return Table(f"Artifact {found.name}", nodes, rows)
    return layer_tree(f"{found.kind.capitalize()} {found.name}", found.layers)


def inspection_notes(found: Inspection) -> list[str]:
    """Facts about the whole."""
    return {"model": _model_notes, "run": _run_notes, "artifact": _artifact_notes}[found.kind](found.summary)


def _model_notes(summary: dict[str, Any]) -> list[str]:
    totals = summary["totals"]
    sizes = (
        f"{totals['parameters']:,} parameters, {as_bytes(totals['bytes'])}, {as_count(totals['macs'])} multiply-adds"
    )
    return [*summary["notes"], f"Input {as_inputs(summary['inputs'])}; {sizes} a sample."]


def _run_notes(summary: dict[str, Any]) -> list[str]:
    tuned = "fine-tuned" if summary["fine_tuned"] else "not fine-tuned yet"
    notes = [f"From {summary['source']} by recipe {summary['recipe']}, input {as_inputs(summary['inputs'])}; {tuned}."]
    if summary["data"] is not None:
        notes.append(f"Data {summary['data']['source']}.")
    return [*notes, *_metrics(summary["metrics"])]


def _artifact_notes(summary: dict[str, Any]) -> list[str]:
    metadata = summary["metadata"]
    count = len(summary["tensors"])
    engine, outside = summary["engine"], len(summary["torch_nodes"])
    isa = f"engine on {engine['isa']}, {len(engine['steps'])} steps" if engine["isa"] else "no native engine"
    return [
        (
            f"Recipe {metadata['recipe'] or 'unknown'}, made by {metadata['producer'] or 'unknown'} from "
            f"{metadata['source'] or 'an unnamed model'}; input {as_inputs(summary['inputs'])}."
        ),
        f"{count} tensors, {as_bytes(summary['tensor_bytes'])}; {isa}; {outside} nodes run in torch.",
        *_metrics(metadata["metrics"]),
    ]


def _metrics(metrics: dict[str, float]) -> list[str]:
    return [f"{name.replace('_', ' ')}: {value:.4g}" for name, value in metrics.items()]
