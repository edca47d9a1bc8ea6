"""Load, trace, plan, rewrite: from a float model to a student, and to a run directory."""

import copy
from collections.abc import Sequence
from dataclasses import replace as changed
from pathlib import Path

from torch import Tensor, nn
from torch.fx import GraphModule

from bnnconvert.errors import UsageError
from bnnconvert.exporters.draft import module_bytes
from bnnconvert.load.data import load_data
from bnnconvert.load.model import LoadedModel, load_model
from bnnconvert.load.shapes import give_shapes, guess_input_shape, is_lazy
from bnnconvert.load.user_code import is_factory
from bnnconvert.lower.deploy import deploy_bytes
from bnnconvert.lower.edges import calibrate as calibrate_edges
from bnnconvert.lower.edges import with_edges
from bnnconvert.lower.predictors import calibrate as calibrate_predictors
from bnnconvert.lower.predictors import planned, with_predictors
from bnnconvert.pipeline.recipe_check import check_recipe
from bnnconvert.pipeline.rules import kept_float, text_with_rules, with_rules
from bnnconvert.pipeline.run_files import fill_run, load_source, load_weights
from bnnconvert.pipeline.student import Student, calibration_batches, data_record, outputs_of, probe_input
from bnnconvert.plan.planner import make_plan
from bnnconvert.recipe import load_recipe, parse_recipe, recipe_text
from bnnconvert.rewrite.base import Rewrite
from bnnconvert.rewrite.dead_signs import CONSTANT, check_signs
from bnnconvert.rewrite.runner import run_rewrites
from bnnconvert.trace.dataflow import layer_facts
from bnnconvert.trace.tracer import trace
from bnnconvert.train import prepare
from bnnconvert.train.latent import binary_layers
from bnnconvert.train.reconstruct import Reconstruction, reconstruct
from bnnconvert.values.data import Data, check_fits
from bnnconvert.values.inputs import Inputs, Shapes, specs_of, specs_of_example
from bnnconvert.values.plan import Plan
from bnnconvert.values.progress import Progress
from bnnconvert.values.recipe import Recipe
from bnnconvert.values.run import SUFFIX, RunDirectory, find_run, new_run
from bnnconvert.values.steering import Steering

TRACED = 2
"""Samples of the probe that a model is traced with."""


def convert(
    model: nn.Module,
    recipe: str | Recipe = "auto",
    *,
    example_inputs: tuple[Tensor, ...] | None = None,
    input_shape: Shapes | None = None,
    data: str | Data | None = None,
    calibrate: int | None = None,
    steering: Steering | None = None,
    progress: Progress | None = None,
) -> Student:
    """Student of a float model; the model itself stays as it is, but for lazy layers, which get their shapes.

    With data, thresholds and batch norm are set on a few hundred images, so that the student starts near its teacher;
    without, that is the first thing that fine-tuning does. `calibrate` fits the student to its teacher on so many
    images, whose labels are not looked at.

    Raises: UsageError, RefusalError.
    """
    if isinstance(recipe, str):
        recipe = load_recipe(recipe)
    if example_inputs is not None:
        input_shape = specs_of_example(example_inputs)
    loaded = _data(data)
    if is_lazy(model):  # which cannot be copied
        give_shapes(model, probe_input(inputs_of(model, input_shape, loaded)[0], loaded))
    return _convert(copy.deepcopy(model), recipe, input_shape, loaded, calibrate, steering, progress)


def _convert(
    model: nn.Module,
    recipe: Recipe,
    input_shape: Shapes | None,
    loaded: Data | None,
    calibrate: int | None,
    steering: Steering | None,
    progress: Progress | None,
) -> Student:
    """Student of a model that becomes its teacher itself."""
    rewrites = check_recipe(recipe)
    if calibrate is not None and loaded is None:
        raise UsageError("To calibrate takes images; give them with --data DIR.")
    inputs, notes = inputs_of(model, input_shape, loaded)
    is_guess = bool(notes)
    probe = probe_input(inputs, loaded)
    give_shapes(model, probe)
    teacher = traced(model.cpu().float(), probe, steering)
    notes = (*notes, *teacher.meta.get("notes", ()))
    if loaded is not None:
        check_fits(loaded, inputs, outputs_of(teacher, probe))
    facts, size = layer_facts(teacher), module_bytes(model)
    student, plan = _rewritten(teacher, make_plan(recipe, facts, inputs=inputs, model_bytes=size), rewrites, probe)
    warnings, dead = check_signs(student, probe, recipe.checks)
    kept = [kept_float(dead, CONSTANT)] if dead else []
    if dead:
        recipe = with_rules(recipe, kept)
        plan = make_plan(recipe, facts, inputs=inputs, model_bytes=size)
        student, plan = _rewritten(teacher, plan, rewrites, probe)
        warnings, _ = check_signs(student, probe, recipe.checks)
    if loaded is not None and calibrate is not None:
        made = reconstruct(student, teacher, loaded, recipe.training, images=calibrate, progress=progress)
        notes = (*notes, _calibrated(made))
    elif loaded is not None:
        prepare(student, calibration_batches(loaded), frozen=recipe.training.keeps_statistics)
    obstacle = next(((path, why) for path, layer in binary_layers(student) if (why := layer.unpackable)), None)
    if obstacle is not None:
        notes = (*notes, f"The student trains and cannot be exported: {obstacle[0]}: {obstacle[1]}.")
    can_export = obstacle is None and not student.meta.get("opaque")
    predicted = predicted_bytes(student, plan, probe) if can_export else None
    plan = changed(plan, warnings=warnings, predicted_bytes=predicted)
    return Student(
        student,
        teacher,
        plan,
        recipe,
        inputs,
        shape_is_guessed=is_guess,
        data=data_record(loaded),
        notes=notes,
        steering=steering or Steering(),
        kept=tuple(kept),
    )


def _rewritten(
    teacher: GraphModule, plan: Plan, rewrites: list[Rewrite], probe: tuple[Tensor, ...]
) -> tuple[GraphModule, Plan]:
    student = copy.deepcopy(teacher)
    return student, planned(student, run_rewrites(student, plan, rewrites, probe=probe))


def predicted_bytes(student: GraphModule, plan: Plan, probe: tuple[Tensor, ...]) -> int:
    """Tensor bytes of the student's artifact, with the plan's 8-bit layers and predictors."""
    paths, shares = [layer.facts.path for layer in plan.layers if layer.int8], plan.predicted
    network = with_edges(student, calibrate_edges(student, paths, [probe])) if paths else student
    if shares:
        network = with_predictors(network, calibrate_predictors(network, shares, [probe]))
    return deploy_bytes(network, probe)


def _calibrated(made: Reconstruction) -> str:
    return (
        f"Calibrated on {made.images:,} images without their labels, {made.steps:,} steps in {made.seconds:.0f} s: "
        f"on those held out it agrees with the original in {made.after:.1%}, before in {made.before:.1%}."
    )


def convert_model(
    spec: str,
    recipe: str = "auto",
    *,
    model: str | None = None,
    trust_pickle: bool = False,
    input_shape: Shapes | None = None,
    data: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    calibrate: int | None = None,
    steering: Steering | None = None,
    text: str | None = None,
    out: str | Path | None = None,
    dry_run: bool = False,
    replace: bool = False,
    progress: Progress | None = None,
) -> Student:
    """Convert a model file or factory and write the run directory `NAME.bnn/`, unless it is a dry run.

    `text` stands for the recipe's own, whose name it keeps.

    Raises: UsageError, RefusalError; nothing is written then.
    """
    text = text or recipe_text(recipe)
    parsed = parse_recipe(text, where=f"recipe {recipe!r}")
    check_recipe(parsed)
    loaded = load_model(spec, model=model, trust_pickle=trust_pickle)
    given = None if data is None else load_data(data, mean=mean, std=std)
    student = _convert(loaded.module, parsed, input_shape, given, calibrate, steering, progress)
    if dry_run:
        return student
    path = Path(out) if out is not None else Path.cwd() / f"{_name(spec)}{SUFFIX}"
    with new_run(path, replace=replace) as run:
        fill_run(
            run,
            loaded,
            student.model,
            factory=model,
            trust_pickle=trust_pickle,
            recipe=parsed.name,
            recipe_text=text_with_rules(text, parsed, student.kept) if student.kept else text,
            plan=student.plan,
            shape_is_guessed=student.shape_is_guessed,
            data=student.data,
            steering=student.steering,
        )
    student.run = RunDirectory(path)
    return student


def convert_again(student: Student, data: Data) -> None:
    """Convert a run anew, in place, for the shape of `data`: its own was only guessed.

    Raises: UsageError, RefusalError; the run stays as it was then.
    """
    assert student.run is not None
    record = student.run.read()
    loaded = load_source(student.run, record)
    fresh = convert(loaded.module, student.recipe, input_shape=data.specs, steering=student.steering)
    text = student.run.file("recipe.toml").read_text("utf-8")
    with new_run(student.run.path, replace=True) as run:
        fill_run(
            run,
            LoadedModel(loaded.module, str(student.run.file(record.source_file)), loaded.kind, loaded.sha256),
            fresh.model,
            factory=record.factory,
            trust_pickle=record.trust_pickle,
            recipe=record.recipe,
            recipe_text=text_with_rules(text, student.recipe, fresh.kept) if fresh.kept else text,
            plan=fresh.plan,
            shape_is_guessed=False,
            data=record.data,
            steering=record.steering,
        )
        run.write(run.read().model_copy(update={"source": record.source, "task": record.task}))
    student.model, student.teacher, student.plan = fresh.model, fresh.teacher, fresh.plan
    student.inputs, student.shape_is_guessed = fresh.inputs, False


def open_run(path: str | Path | None = None) -> Student:
    """Student of a run directory, with its newest weights; by default of the newest one in the current folder.

    Raises: UsageError if there is none, ArtifactError if it is damaged.
    """
    run = find_run(None if path is None else Path(path), folder=Path.cwd())
    record = run.read()
    loaded = load_source(run, record)
    recipe = parse_recipe(run.file("recipe.toml").read_text("utf-8"), where=str(run.path))
    student = _rebuild(loaded, recipe, record.inputs, record.steering)
    load_weights(student.model, run)
    student.run, student.data, student.shape_is_guessed = run, record.data, record.shape_is_guessed
    student.task = record.task
    return student


def _rebuild(loaded: LoadedModel, recipe: Recipe, inputs: Inputs, steering: Steering) -> Student:
    """The student as convert made it, before its own weights are loaded."""
    probe = probe_input(inputs)
    teacher = traced(loaded.module, probe, steering)
    plan = make_plan(recipe, layer_facts(teacher), inputs=inputs, model_bytes=module_bytes(loaded.module))
    model, plan = _rewritten(teacher, plan, check_recipe(recipe), probe)
    return Student(model, teacher, plan, recipe, inputs, steering=steering)


def traced(module: nn.Module, probe: tuple[Tensor, ...], steering: Steering | None = None) -> GraphModule:
    """Canonical graph, every parameter trainable: a user may have frozen some."""
    return trace(module.requires_grad_(True), tuple(x[:TRACED] for x in probe), steering)


def inputs_of(model: nn.Module, given: Shapes | None, data: Data | None) -> tuple[Inputs, tuple[str, ...]]:
    """What the model takes, and what to tell the user about it."""
    if given is not None:
        return specs_of(given), ()
    if data is not None:
        return data.specs, ()
    known: Inputs | None = getattr(model, "meta", {}).get("inputs")
    if known is not None:
        return known, ()
    shape = guess_input_shape(model)
    shown = ",".join(map(str, shape))
    return specs_of(shape), (f"Input shape {shown} guessed from the first layer; give another with --input-shape.",)


def _data(data: str | Data | None) -> Data | None:
    return load_data(data) if isinstance(data, str) else data


def _name(spec: str) -> str:
    """Name of a run for what the user typed: the file's, or the factory's."""
    if is_factory(spec):
        return spec.rpartition(":")[2]
    return Path(spec).stem
