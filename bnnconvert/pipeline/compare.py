"""Several recipes on one model under equal conditions: the same data, epochs and seed.

OUT/conditions.json          what all recipes have in common
OUT/compare.json             all results
OUT/NAME.json                one recipe's result, written when it is done
OUT/NAME.bnn                 its run, which goes on from its checkpoint
OUT/NAME.packed.safetensors
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

from bnnconvert.errors import RefusalError, UsageError, first_line
from bnnconvert.load.data import load_data
from bnnconvert.load.model import load_model
from bnnconvert.pipeline.convert import convert_model, open_run
from bnnconvert.pipeline.export import export
from bnnconvert.pipeline.finetune import finetune
from bnnconvert.pipeline.recipe_check import check_recipe
from bnnconvert.pipeline.speeds import speeds
from bnnconvert.pipeline.student import Student
from bnnconvert.pipeline.targets import PACKED_SUFFIX
from bnnconvert.pipeline.verify import verify
from bnnconvert.recipe import parse_recipe, recipe_text
from bnnconvert.runtime import Session
from bnnconvert.train import evaluate_samples
from bnnconvert.train.cost import step_cost
from bnnconvert.train.memory import return_kept_memory
from bnnconvert.values.comparison import ComparedRecipe, Comparison, Conditions, Figures
from bnnconvert.values.data import Data
from bnnconvert.values.files import write_text
from bnnconvert.values.inputs import Shapes, alone
from bnnconvert.values.progress import Progress, Silent
from bnnconvert.values.recipe import Published, Recipe
from bnnconvert.values.report import VerifyReport

VERIFIED = 2_000
"""Test samples, spread over the set, on which a file is compared with its student layer by layer, which takes longer
than all else that is done with the file."""


def compare(
    spec: str,
    data: str,
    recipes: Sequence[str],
    *,
    model: str | None = None,
    trust_pickle: bool = False,
    input_shape: Shapes | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    epochs: int | None = None,
    seed: int = 0,
    device: str | None = None,
    mixed_precision: Literal["no", "fp16", "bf16"] = "no",
    compile: bool = False,
    out: str | Path = "compare",
    progress: Progress | None = None,
) -> Comparison:
    """Convert, fine-tune, export and measure each recipe, going on where an earlier call was stopped.

    A recipe that refuses the model has its reason in the result and stops nothing.

    Raises: UsageError for wrong names, and for a folder that holds a comparison under other conditions.
    """
    told, out = progress or Silent(), Path(out)
    entries = _entries(recipes)
    loaded = load_data(data, mean=mean, std=std)
    if loaded.test is None:
        raise UsageError(f"{data}: has no test set, on which recipes are compared; add test/ or val/.")
    original = load_model(spec, model=model, trust_pickle=trust_pickle)
    conditions = Conditions(
        source=spec,
        source_sha256=original.sha256,
        data=data,
        epochs=epochs,
        seed=seed,
        mixed_precision=mixed_precision,
        compile=compile,
    )
    _claim(out, conditions)
    known = {name: _known(out, name, entry.sha256) for name, entry in entries.items()}
    done = []
    for number, (name, entry) in enumerate(entries.items(), start=1):
        found = known[name]
        if found is None:
            told.note(f"{name} ({number} of {len(entries)})")
            try:
                student = _run(
                    out / f"{name}.bnn",
                    spec,
                    entry,
                    model,
                    trust_pickle,
                    input_shape=input_shape,
                    data=data,
                    mean=mean,
                    std=std,
                )
                found = _measure(student, name, entry.sha256, loaded, conditions, device, progress=told)
            except RefusalError as refusal:
                found = ComparedRecipe(recipe=name, recipe_sha256=entry.sha256, figures=None, refusal=str(refusal))
            write_text(out / f"{name}.json", found.model_dump_json(indent=2) + "\n")
        done.append(found.model_copy(update={"published": entry.published}))
    own, times = speeds(original.module, {r.recipe: out / f"{r.recipe}{PACKED_SUFFIX}" for r in done}, loaded)
    comparison = Comparison(
        conditions=conditions,
        float_accuracy=_accuracy(original.module, loaded, device),
        float_bytes=sum(t.numel() * t.element_size() for t in original.module.state_dict().values()),
        float_milliseconds=own,
        recipes=tuple(done),
        milliseconds=times,
    )
    write_text(out / "compare.json", comparison.model_dump_json(indent=2) + "\n")
    return comparison


@dataclass(frozen=True)
class _Entry:
    """A recipe as it was given, and what it asks for."""

    text: str
    sha256: str
    published: Published | None


def _entries(recipes: Sequence[str]) -> dict[str, _Entry]:
    """Each recipe by its name, every one checked before anything is trained."""
    entries: dict[str, _Entry] = {}
    for given in recipes:
        text = recipe_text(given)
        recipe = parse_recipe(text, where=given)
        check_recipe(recipe)
        if recipe.name in entries:
            raise UsageError(f"--recipes: {recipe.name!r} comes twice; give each recipe a name of its own.")
        entries[recipe.name] = _Entry(text, _sha256(recipe), recipe.published)
    return entries


def _claim(out: Path, conditions: Conditions) -> None:
    """Make the folder, or see that it was made for the same conditions."""
    file = out / "conditions.json"
    if file.exists():
        try:
            known = Conditions.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise UsageError(
                f"{file}: cannot be read ({first_line(error)}); choose another folder with --out."
            ) from error
        differ = [key for key in Conditions.model_fields if getattr(known, key) != getattr(conditions, key)]
        if differ:
            was, now = getattr(known, differ[0]), getattr(conditions, differ[0])
            raise UsageError(
                f"{out}: holds a comparison with {differ[0]} {was!r}, not {now!r}; choose another folder with --out."
            )
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: cannot be made ({error.strerror}); choose another folder with --out.") from error
    write_text(file, conditions.model_dump_json(indent=2) + "\n")


def _run(run: Path, spec: str, entry: _Entry, model: str | None, trust_pickle: bool, **options: Any) -> Student:
    """The recipe's run, made from the text that was checked where there is none yet."""
    if (run / "run.json").exists():
        return open_run(run)
    file = run.with_suffix(".toml")
    write_text(file, entry.text)
    return convert_model(spec, str(file), model=model, trust_pickle=trust_pickle, out=run, **options)


def _known(out: Path, name: str, sha256: str) -> ComparedRecipe | None:
    """The recipe's result, if it has one; what there is must have been made with the same settings."""
    file, recipe = out / f"{name}.json", out / f"{name}.bnn" / "recipe.toml"
    if recipe.exists():
        _same(recipe, _sha256(parse_recipe(recipe.read_text(), where=str(recipe))), name, sha256)
    if not file.exists():
        return None
    try:
        found = ComparedRecipe.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise UsageError(f"{file}: cannot be read ({first_line(error)}); remove it to measure {name} again.") from error
    _same(file, found.recipe_sha256, name, sha256)
    return found


def _same(file: Path, was: str, name: str, sha256: str) -> None:
    if was != sha256:
        raise UsageError(f"{file}: was made with other settings of recipe {name!r}; choose another folder with --out.")


def _measure(
    student: Student,
    name: str,
    sha256: str,
    data: Data,
    conditions: Conditions,
    device: str | None,
    *,
    progress: Progress,
) -> ComparedRecipe:
    """Train and export a run; a recipe that cannot be exported has figures without a packed file."""
    assert student.run is not None
    assert data.test is not None
    converted, ratio = _converted(student, data, device), _ratio(student, data)
    trained = finetune(
        student,
        data,
        epochs=conditions.epochs,
        seed=conditions.seed,
        mixed_precision=conditions.mixed_precision,
        compile=conditions.compile,
        device=device,
        resume=True,
        progress=progress,
    )
    return_kept_memory()  # several GB that neither the verification nor the next recipe fits into
    figures = Figures(
        converted=converted,
        fine_tuned=_accuracy(student.model, data, device),
        samples=len(data.test),
        epochs=trained.epochs,
        best_epoch=trained.best_epoch,
        held_out=trained.held_out_accuracy,
        minutes=trained.seconds / 60,
        step_ratio=ratio,
    )
    refusal = None
    packed = student.run.path.with_name(f"{name}{PACKED_SUFFIX}")
    try:
        exported = export(student, packed)
    except RefusalError as error:
        refusal = str(error)
    else:
        compared = verify(packed, against=student, data=data, samples=VERIFIED)
        assert isinstance(compared, VerifyReport)
        figures = figures.model_copy(
            update={
                "packed": evaluate_samples(Session(packed).run, data.test, data, as_numpy=True).accuracy,
                "agreement": compared.agreement,
                "unexplained_samples": compared.unexplained_samples,
                "predicted_bytes": exported.predicted_bytes,
                "tensor_bytes": exported.tensor_bytes,
                "file_bytes": exported.file_bytes,
            }
        )
    return ComparedRecipe(recipe=name, recipe_sha256=sha256, figures=figures, refusal=refusal)


def _converted(student: Student, data: Data, device: str | None) -> float:
    """Accuracy as converted, whatever the run has become since."""
    assert student.run is not None
    now = {name: tensor.clone() for name, tensor in student.model.state_dict().items()}
    student.model.load_state_dict(load_file(student.run.file("student.safetensors")))
    accuracy = _accuracy(student.model, data, device)
    student.model.load_state_dict(now)
    return accuracy


def _ratio(student: Student, data: Data) -> float:
    chosen = torch.arange(min(student.recipe.training.batch_size, len(data.train)))
    _, labels = data.train.batch(chosen)
    x = alone(data.inputs(data.train, chosen), "compare")
    return step_cost(student.model, student.teacher, student.recipe.training, x, labels).ratio


def _accuracy(model: nn.Module, data: Data, device: str | None) -> float:
    assert data.test is not None
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model.to(where).eval()
    try:
        with torch.no_grad():
            return evaluate_samples(model, data.test, data, device=where).accuracy
    finally:
        model.cpu()


def _sha256(recipe: Recipe) -> str:
    """Of what a recipe asks for; its comments, and what it says about itself, may change."""
    asked = recipe.model_dump_json(exclude={"title", "source", "summary", "published"}, exclude_defaults=True)
    return hashlib.sha256(asked.encode()).hexdigest()
