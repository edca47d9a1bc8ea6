"""What a model, a run or an artifact consists of, as plain data."""

from dataclasses import asdict

from bnnconvert.exporters.draft import module_bytes
from bnnconvert.pipeline.look import Look
from bnnconvert.pipeline.student import Student
from bnnconvert.runtime import Session
from bnnconvert.values.inputs import described
from bnnconvert.values.report import Inspection


def inspect(look: Look) -> Inspection:
    """What a model, a run or an artifact consists of."""
    opened = look.found
    if isinstance(opened, Session):
        return _inspect_artifact(look.target, opened)
    if isinstance(opened, Student):
        plan = opened.plan.to_json()
        assert opened.run is not None
        record = opened.run.read()
        summary = {
            "recipe": plan["recipe"],
            "inputs": plan["inputs"],
            "rewrites": plan["rewrites"],
            "totals": plan["totals"],
            "source": record.source,
            "data": None if record.data is None else record.data.model_dump(),
            "fine_tuned": opened.run.file("best.safetensors").exists(),
            "metrics": record.metrics,
        }
        return Inspection("run", str(opened.run.path), tuple(plan["layers"]), summary)
    layers = tuple(
        {"name": f.path} | asdict(f) | {"macs": f.macs, "float_bytes": f.float_bytes, "packed_bytes": f.packed_bytes()}
        for f in opened.facts
    )
    totals = {
        "parameters": sum(p.numel() for p in opened.module.parameters()),
        "macs": sum(f.macs for f in opened.facts),
    }
    totals["bytes"] = module_bytes(opened.module)
    summary = {"inputs": described(opened.inputs), "notes": list(opened.notes), "totals": totals}
    return Inspection("model", look.target, layers, summary)


def _inspect_artifact(target: str, session: Session) -> Inspection:
    executor = session.executor
    steps = [step for engine in executor.engines for step in engine.steps()]
    layers = tuple(
        {
            "name": node.outputs[0].name,
            "op": node.op,
            "layer": node.layer,
            "shape": [list(o.sized(1)) for o in node.outputs],
            "runs_in": executor.place(number),
            "reason": executor.reasons.get(number),
        }
        for number, node in enumerate(session.program.nodes)
    )
    tensors = session.artifact.tensors
    summary = {
        "metadata": session.metadata.model_dump(mode="json", exclude={"recipe_text"}),
        "inputs": [{"shape": [None, *i.sized(1)[1:]], "dtype": i.dtype} for i in session.program.inputs],
        "tensor_bytes": sum(a.nbytes for a in tensors.values()),
        "tensors": {name: {"dtype": str(a.dtype), "shape": list(a.shape)} for name, a in tensors.items()},
        "engine": {
            "isa": session.isa,
            "memory": sum(engine.memory for engine in executor.engines),
            "steps": [{"layer": s.layer, "kernel": s.kernel, "tile": s.tile} for s in steps],
        },
        "torch_nodes": [layer["name"] for layer in layers if layer["runs_in"] == "torch"],
    }
    return Inspection("artifact", target, layers, summary)
