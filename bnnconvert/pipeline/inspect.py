"""What a model, a run or an artifact consists of, as plain data."""

from dataclasses import asdict

from bnnconvert.exporters.draft import module_bytes
from bnnconvert.pipeline.convert import inputs_of
from bnnconvert.pipeline.student import Student, probe_input
from bnnconvert.pipeline.targets import open_target
from bnnconvert.runtime import Session
from bnnconvert.trace.dataflow import layer_facts
from bnnconvert.trace.tracer import trace
from bnnconvert.values.inputs import Shapes, described
from bnnconvert.values.report import Inspection
from bnnconvert.values.steering import Steering


def inspect(
    target: str,
    *,
    model: str | None = None,
    trust_pickle: bool = False,
    input_shape: Shapes | None = None,
    steering: Steering | None = None,
) -> Inspection:
    """What a model, a run or an artifact consists of.

    Raises: UsageError, RefusalError, ArtifactError.
    """
    opened = open_target(target, model=model, trust_pickle=trust_pickle)
    if isinstance(opened, Session):
        return _inspect_artifact(target, opened)
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
    inputs, notes = inputs_of(opened, input_shape, None)
    graph = trace(opened, probe_input(inputs), steering)
    facts, notes = layer_facts(graph), (*notes, *graph.meta.get("notes", ()))
    layers = tuple(
        {"name": f.path} | asdict(f) | {"macs": f.macs, "float_bytes": f.float_bytes, "packed_bytes": f.packed_bytes()}
        for f in facts
    )
    totals = {"parameters": sum(p.numel() for p in opened.parameters()), "macs": sum(f.macs for f in facts)}
    summary = {"inputs": described(inputs), "notes": list(notes), "totals": totals | {"bytes": module_bytes(opened)}}
    return Inspection("model", target, layers, summary)


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
