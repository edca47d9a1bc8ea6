"""Artifacts in memory, for tests."""

import torch
from torch.fx import GraphModule

from bnnconvert.artifact.schema import Artifact, Metadata
from bnnconvert.lower.deploy import deploy
from bnnconvert.lower.program import lower
from bnnconvert.runtime.session import Session, flattened


def draft(student: GraphModule, x: torch.Tensor) -> Artifact:
    """Artifact of a student, without a golden output."""
    program, tensors = lower(deploy(student, x), x)
    return Artifact(program, tensors, Metadata(recipe="tests"), (x[:2].numpy().copy(),), ())


def complete(student: GraphModule, x: torch.Tensor) -> Artifact:
    """Artifact of a student, with its golden output."""
    artifact = draft(student, x)
    outputs = tuple(flattened(Session(artifact).run(*artifact.golden_inputs)))
    return Artifact(artifact.program, artifact.tensors, artifact.metadata, artifact.golden_inputs, outputs)
