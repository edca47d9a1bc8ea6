"""Train a student with its original as the teacher."""

import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from safetensors.torch import load_file

from bnnconvert.errors import UsageError
from bnnconvert.graph import members_of
from bnnconvert.load.data import load_data
from bnnconvert.load.task import load_task
from bnnconvert.pipeline.convert import convert_again
from bnnconvert.pipeline.student import Student, classes_of, data_record, probe_input
from bnnconvert.tasks import Task
from bnnconvert.train import finetune as train_student
from bnnconvert.train.ensemble import finetune_ensemble
from bnnconvert.values.data import Data, check_fits
from bnnconvert.values.inputs import Inputs, run_example
from bnnconvert.values.progress import Progress
from bnnconvert.values.report import TrainReport
from bnnconvert.values.run import MEMBERS, RunDirectory, hold


def finetune(
    student: Student,
    data: str | Data | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    task: str | None = None,
    resume: bool = False,
    restart: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> TrainReport:
    """Fine-tune the student in place, with the original as its teacher.

    Options are those of `bnnconvert.train.finetune`: epochs, max_steps, batch_size, lr, device, seed, augment,
    mixed_precision, compile, workers. `task` is a name or `package.module:object`, by default the student's own;
    the run records it.

    Raises: UsageError, RefusalError.
    """
    kind = load_task(task or student.task)
    student.task = task or student.task
    loaded = _training_data(student, data, mean, std, kind)
    if _guess_is_wrong(student, loaded):
        convert_again(student, loaded)
    check_fits(loaded, student.inputs, classes_of(student.teacher, probe_input(student.inputs), kind))
    run = student.run
    main = int(os.environ.get("RANK", "0")) == 0
    with hold(run.path) if run is not None and main else nullcontext():
        if run is not None:
            _prepare(run, student, loaded, resume=resume, restart=restart, main=main)
        train = finetune_ensemble if members_of(student.model) else train_student
        report = train(
            student.model,
            student.teacher,
            loaded,
            student.recipe.training,
            folder=None if run is None else run.path,
            resume=resume,
            progress=progress,
            task=kind,
            **options,
        )
        student.data = data_record(loaded)
        if run is not None and main:
            metrics = {f"held_out_{report.metric}": report.held_out_accuracy, "epochs": float(report.epochs)}
            run.write(run.read().model_copy(update={"metrics": metrics}))
    return report


def _prepare(run: RunDirectory, student: Student, data: Data, *, resume: bool, restart: bool, main: bool) -> None:
    """Bring run and student to where the training begins: as converted, unless it is resumed.

    Raises: UsageError where the caller must choose.
    """
    if run.has_checkpoint and not (resume or restart):
        raise UsageError(f"{run.path}: holds a checkpoint; give --resume to go on with it, or --restart to begin anew.")
    if restart and main:
        for name in ("checkpoint.pt", "best.safetensors", "metrics.jsonl"):
            run.file(name).unlink(missing_ok=True)
        shutil.rmtree(run.file(MEMBERS), ignore_errors=True)
    if not resume:
        student.model.load_state_dict(load_file(run.file("student.safetensors")))
    if main:
        record = run.read()
        task = record.task if resume and run.has_checkpoint else student.task  # another one will be refused
        run.write(record.model_copy(update={"data": data_record(data), "task": task}))


def _guess_is_wrong(student: Student, data: Data) -> bool:
    """Whether the student's input shape was a guess and nothing trained yet, and the model takes the data's as well."""
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    new = student.run is not None and not student.run.has_checkpoint
    if not (alone and new and student.shape_is_guessed) or _shapes(data.specs) == _shapes(student.inputs):
        return False
    try:
        run_example(student.teacher, probe_input(data.specs))
    except UsageError:
        return False
    return True


def _shapes(inputs: Inputs) -> list[tuple[int, ...]]:
    return [spec.shape for spec in inputs]


def _training_data(
    student: Student, data: str | Data | None, mean: Sequence[float] | None, std: Sequence[float] | None, task: Task
) -> Data:
    if isinstance(data, Data):
        return data
    recorded = student.data
    if data is None and recorded is None:
        raise UsageError("There is no data to fine-tune on; give it with --data DIR.")
    if data is None or (recorded is not None and data == recorded.source):
        assert recorded is not None
        return load_data(
            recorded.source, mean=mean or recorded.mean or None, std=std or recorded.std or None, task=task
        )
    return load_data(data, mean=mean, std=std, task=task)
