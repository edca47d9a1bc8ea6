"""What `inspect` looks at: opened, and a model traced, once for the table and the page."""

from dataclasses import dataclass

from torch import nn
from torch.fx import GraphModule

from bnnconvert.pipeline.convert import inputs_of, traced
from bnnconvert.pipeline.student import Student, probe_input
from bnnconvert.pipeline.targets import open_target
from bnnconvert.runtime import Session
from bnnconvert.trace.dataflow import layer_facts
from bnnconvert.values.inputs import Inputs, Shapes
from bnnconvert.values.plan import LayerFacts
from bnnconvert.values.steering import Steering


@dataclass(frozen=True)
class TracedModel:
    """A float model and its graph."""

    module: nn.Module
    graph: GraphModule
    facts: tuple[LayerFacts, ...]
    inputs: Inputs
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Look:
    """A target by its name, and what it is."""

    target: str
    found: Student | Session | TracedModel


def look_at(
    target: str,
    *,
    model: str | None = None,
    trust_pickle: bool = False,
    input_shape: Shapes | None = None,
    steering: Steering | None = None,
) -> Look:
    """Open a run, an artifact or a model, and trace the model.

    Raises: UsageError, RefusalError, ArtifactError.
    """
    opened = open_target(target, model=model, trust_pickle=trust_pickle)
    if isinstance(opened, Student | Session):
        return Look(target, opened)
    inputs, notes = inputs_of(opened, input_shape, None)
    graph = traced(opened, probe_input(inputs), steering)
    return Look(target, TracedModel(opened, graph, layer_facts(graph), inputs, (*notes, *graph.meta.get("notes", ()))))
