"""What convert leaves in a run directory and how later commands read it back: source, recipe, plan, weights."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from bnnconvert import __version__
from bnnconvert.errors import ArtifactError, first_line
from bnnconvert.load.model import LoadedModel, load_model
from bnnconvert.values.files import write_bytes, write_text
from bnnconvert.values.plan import Plan
from bnnconvert.values.run import DataRecord, RunDirectory, RunRecord
from bnnconvert.values.steering import Steering


def fill_run(
    run: RunDirectory,
    loaded: LoadedModel,
    student: nn.Module,
    *,
    factory: str | None,
    trust_pickle: bool,
    recipe: str,
    recipe_text: str,
    plan: Plan,
    shape_is_guessed: bool,
    data: DataRecord | None,
    steering: Steering,
) -> None:
    """Write everything that `load_source` and `load_weights` need, run.json last."""
    if loaded.kind == "factory":
        source, factory = "source.safetensors", loaded.spec
        write_bytes(run.file(source), save(_tensors(loaded.module)))
    else:
        source = f"source{Path(loaded.spec).suffix}"
        write_bytes(run.file(source), Path(loaded.spec).read_bytes())
    digest = hashlib.sha256(run.file(source).read_bytes()).hexdigest()
    write_text(run.file("recipe.toml"), recipe_text)
    write_text(run.file("plan.json"), json.dumps(plan.to_json(), indent=2) + "\n")
    write_bytes(run.file("student.safetensors"), save(_tensors(student)))
    run.write(
        RunRecord(
            producer=f"bnnconvert {__version__}",
            source=loaded.spec,
            source_kind=loaded.kind,
            source_file=source,
            source_sha256=digest,
            factory=factory,
            trust_pickle=trust_pickle,
            recipe=recipe,
            input_shape=plan.input_shape,
            shape_is_guessed=shape_is_guessed,
            data=data,
            steering=steering,
        )
    )


def load_source(run: RunDirectory, record: RunRecord) -> LoadedModel:
    """The float model that the run was made from."""
    return load_model(run.file(record.source_file), model=record.factory, trust_pickle=record.trust_pickle)


def load_weights(student: nn.Module, run: RunDirectory) -> None:
    """Load the run's newest weights into its student.

    Raises: ArtifactError if they are damaged or of another student.
    """
    try:
        student.load_state_dict(load_file(run.weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ArtifactError(
            f"{run.weights}: does not hold this run's student ({first_line(error)}); run `bnnconvert convert` again."
        ) from error


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """State dict with its own memory for every tensor, as safetensors wants it."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in module.state_dict().items()}
