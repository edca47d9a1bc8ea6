"""What a command may be pointed at: a run directory, a packed artifact, a float model."""

from pathlib import Path
from typing import Literal

from torch import nn

from bnnconvert.artifact.reader import is_artifact
from bnnconvert.load.model import load_model
from bnnconvert.pipeline.convert import open_run
from bnnconvert.pipeline.student import Student
from bnnconvert.runtime import Session
from bnnconvert.values.run import DataRecord

PACKED_SUFFIX = ".packed.safetensors"
"""Even a damaged file of this name was meant to be an artifact."""
Target = str | Path | Student | Session | nn.Module


def open_target(
    target: Target,
    *,
    model: str | None = None,
    trust_pickle: bool = False,
    threads: int = 1,
) -> Student | Session | nn.Module:
    """Open whatever `target` names: a folder is a run, a file that says so an artifact, all else a model."""
    if not isinstance(target, str | Path):
        return target
    path = Path(target)
    if path.is_dir():
        return open_run(path)
    if model is None and (path.name.endswith(PACKED_SUFFIX) or is_artifact(path)):
        return Session(path, threads=threads)
    return load_model(str(target), model=model, trust_pickle=trust_pickle).module


def kind_of(opened: Student | Session | nn.Module) -> Literal["run", "artifact", "model"]:
    """What was opened."""
    return "run" if isinstance(opened, Student) else "artifact" if isinstance(opened, Session) else "model"


def label_of(target: object, opened: Student | Session | nn.Module) -> str:
    """How to call the target in a report."""
    if isinstance(target, str | Path):
        return str(target)
    if isinstance(opened, Student):
        return str(opened.run.path) if opened.run is not None else "student"
    return opened.path if isinstance(opened, Session) else type(opened).__name__


def recorded_data(opened: Student | Session | nn.Module) -> DataRecord | None:
    """What the target says about the data that it was made for."""
    if isinstance(opened, Student):
        return opened.data
    if isinstance(opened, Session) and opened.metadata.normalisation is not None:
        known = opened.metadata.normalisation
        return DataRecord(source="", scale=known.scale, mean=known.mean, std=known.std)
    return None
