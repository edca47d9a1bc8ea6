"""What convert leaves in a run directory and how later commands read it back: source, recipe, plan, weights."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from bnnconvert import __version__
from bnnconvert.errors import ArtifactError, first_line
from bnnconvert.load.model import LoadedModel, load_model
from bnnconvert.pipeline.student import probe_input
from bnnconvert.values.files import atomic_write, file_sha256, write_text
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
        _save(loaded.module, run.file(source))
    else:
        source = f"source{Path(loaded.spec).suffix}"
        with atomic_write(run.file(source)) as temporary:
            shutil.copyfile(loaded.spec, temporary)
    write_text(run.file("recipe.toml"), recipe_text)
    write_text(run.file("plan.json"), json.dumps(plan.to_json(), indent=2) + "\n")
    with ThreadPoolExecutor(1) as pool:  # hashing takes as long as writing does
        sha256 = pool.submit(file_sha256, run.file(source))
        _save(student, run.file("student.safetensors"))
    run.write(
        RunRecord(
            producer=f"bnnconvert {__version__}",
            source=loaded.spec,
            source_kind=loaded.kind,
            source_file=source,
            source_sha256=sha256.result(),
            factory=factory,
            trust_pickle=trust_pickle,
            recipe=recipe,
            inputs=plan.inputs,
            shape_is_guessed=shape_is_guessed,
            data=data,
            steering=steering,
        )
    )


def load_source(run: RunDirectory, record: RunRecord) -> LoadedModel:
    """The float model that the run was made from."""
    return load_model(
        run.file(record.source_file),
        model=record.factory,
        trust_pickle=record.trust_pickle,
        probe=probe_input(record.inputs),
    )


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


def _save(module: nn.Module, path: Path) -> None:
    """Write a state dict; tensors of several names are written once for each."""
    tensors, seen = dict[str, torch.Tensor](), set[int]()
    for name, tensor in module.state_dict().items():
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if storage in seen and tensor.numel() else tensor.contiguous()
        seen.add(storage)
    with atomic_write(path) as temporary:
        save_file(tensors, temporary)
