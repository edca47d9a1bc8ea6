"""`bnnconvert convert`: trace, plan and rewrite a model, and write its run directory."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bnnconvert.cli import options

if TYPE_CHECKING:
    from bnnconvert.pipeline import Student


def convert(
    model_file: Annotated[
        str, typer.Argument(metavar="MODEL", help="File (.pt, .pth, .pt2, .safetensors) or package.module:factory.")
    ],
    recipe: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE", help="What to make of it: a name that `bnnconvert recipes` lists, or a TOML file."
        ),
    ] = "auto",
    model: options.Factory = None,
    input_shape: options.InputShape = None,
    data: options.Data = None,
    mean: options.Mean = None,
    std: options.Std = None,
    calibrate: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Fit the student to the original on N images without labels, in a minute or two."
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="LIMIT",
            help='Mix 1-bit, 4-bit, 8-bit and float layers within "max-drop=2" (points) or "max-bytes=3MB".',
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Run directory to write; default: NAME.bnn in the current folder."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write no run.")] = False,
    html: options.Html = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a run that has been fine-tuned already.")] = False,
    leaf: options.Leaf = None,
    concrete: options.Concrete = None,
    trust_pickle: options.TrustPickle = False,
    as_json: options.AsJson = False,
) -> None:
    """Rewrite a float model into a binary student."""
    given: dict[str, Any] = {
        "model": model,
        "trust_pickle": trust_pickle,
        "input_shape": options.inputs_of(input_shape),
        "data": data,
        "mean": options.numbers_of(mean, "--mean"),
        "std": options.numbers_of(std, "--std"),
        "calibrate": calibrate,
        "steering": options.steering_of(leaf, concrete),
        "out": out,
        "dry_run": dry_run,
        "replace": replace,
    }
    from bnnconvert import pipeline
    from bnnconvert.cli import render
    from bnnconvert.report.budget import budget_notes
    from bnnconvert.train.memory import keep_freed_memory, return_freed_memory

    if calibrate is not None:
        keep_freed_memory()
    else:
        return_freed_memory()
    fitted = None
    with render.TrainingBar() as bar, render.CountBar("layers at a width") as count:
        if budget is None:
            student = pipeline.convert_model(model_file, recipe, progress=bar, **given)
        else:
            limit = pipeline.parse_budget(budget)
            student, fitted = pipeline.convert_within(limit, model_file, recipe, measured=count, progress=bar, **given)
    for sentence in student.notes:
        render.note(sentence)
    if html is not None:
        render.page(pipeline.page_of_student(student), html)
    if as_json:
        run = None if student.run is None else str(student.run.path)
        mixed = {} if fitted is None else {"budget": fitted.to_json()}
        render.as_json(student.plan.to_json() | {"run": run, "notes": list(student.notes)} | mixed)
    else:
        _show(student, render)
        if fitted is not None:
            render.lines(budget_notes(fitted))
    if student.run is None:
        render.note("No run was written (--dry-run).")
        return
    render.note(f"Written: {student.run.path}")
    where = "" if out is None else f" {shlex.quote(str(out))}"
    render.next_step(f"bnnconvert finetune{where}" + (" --data DIR" if data is None else ""))


def _show(student: "Student", render: Any) -> None:
    from bnnconvert.report.plan import plan_notes, plan_table, plan_tree, rewrites_table

    render.table(plan_tree(student.plan) if student.run is None else plan_table(student.plan))
    render.table(rewrites_table(student.plan))
    render.lines(plan_notes(student.plan))
    for sentence in student.plan.warnings:
        render.warning(sentence)
