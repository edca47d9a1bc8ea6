"""The stages in order, and the Python API: convert, finetune, evaluate, export, verify, inspect."""

import copy
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.fx import GraphModule

from bnnconvert import __version__
from bnnconvert.artifact.schema import Metadata, Normalisation
from bnnconvert.binarizers import build_input_binarizer, build_weight_binarizer
from bnnconvert.errors import UsageError
from bnnconvert.export.packed import module_bytes
from bnnconvert.export.table import TARGETS
from bnnconvert.export.verify import verify as compare_with_student
from bnnconvert.load.data import load_data
from bnnconvert.load.model import LoadedModel, load_model
from bnnconvert.load.shapes import guess_input_shape
from bnnconvert.load.user_code import is_factory
from bnnconvert.lower.deploy import deploy_bytes
from bnnconvert.plan.planner import make_plan
from bnnconvert.recipe import load_recipe, parse_recipe, recipe_text
from bnnconvert.rewrite.base import Rewrite
from bnnconvert.rewrite.dead_signs import require_live_signs
from bnnconvert.rewrite.runner import build_rewrites, run_rewrites
from bnnconvert.run_files import fill_run, load_source, load_weights
from bnnconvert.runtime import Session
from bnnconvert.trace.dataflow import layer_facts
from bnnconvert.trace.tracer import trace
from bnnconvert.train import evaluate_samples
from bnnconvert.train import finetune as train_student
from bnnconvert.train.objective import build_losses
from bnnconvert.train.optimizers import OPTIMIZERS
from bnnconvert.values.data import Data, Samples, check_fits, normalise
from bnnconvert.values.plan import Plan
from bnnconvert.values.progress import Progress
from bnnconvert.values.recipe import Recipe
from bnnconvert.values.report import (
    EvaluationReport,
    ExportReport,
    GoldenReport,
    Inspection,
    TrainReport,
    VerifyReport,
)
from bnnconvert.values.run import SUFFIX, DataRecord, RunDirectory, find_run, new_run
from bnnconvert.values.tables import look_up

PROBE_SAMPLES = 8
"""Samples of the probe input: enough for batch statistics, few enough for any model."""


@dataclass
class Student:
    """A converted model: an ordinary trainable module, its teacher, and how it came about."""

    model: GraphModule
    teacher: GraphModule
    plan: Plan
    recipe: Recipe
    input_shape: tuple[int, ...]
    run: RunDirectory | None = None
    data: DataRecord | None = None
    notes: tuple[str, ...] = ()


def convert(
    model: nn.Module,
    recipe: str | Recipe = "xnor",
    *,
    example_inputs: tuple[Tensor, ...] | None = None,
    input_shape: Sequence[int] | None = None,
    data: str | Data | None = None,
) -> Student:
    """Student of a float model; the model itself stays as it is.

    Raises: UsageError, RefusalError.
    """
    if isinstance(recipe, str):
        recipe = load_recipe(recipe)
    rewrites = check_recipe(recipe)
    loaded = _data(data)
    if example_inputs is not None:
        input_shape = (1, *example_inputs[0].shape[1:])
    shape, notes = _input_shape(model, input_shape, loaded)
    probe = probe_input(shape, loaded)
    model = copy.deepcopy(model).cpu().float()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    teacher = trace(model, probe)
    if loaded is not None:
        check_fits(loaded, shape, _outputs(teacher, probe))
    plan = make_plan(recipe, layer_facts(teacher), input_shape=shape, model_bytes=module_bytes(model))
    student = copy.deepcopy(teacher)
    plan = run_rewrites(student, plan, rewrites, probe=probe)
    warnings = require_live_signs(student, probe, limit=recipe.checks.dead_channels)
    plan = replace(plan, warnings=warnings, predicted_bytes=deploy_bytes(student, probe[0]))
    return Student(student, teacher, plan, recipe, shape, data=_record(loaded), notes=notes)


def check_recipe(recipe: Recipe) -> list[Rewrite]:
    """The recipe's rewrites, after a look at every name and option in it.

    Raises: UsageError naming the key that is wrong.
    """
    rewrites = build_rewrites(recipe)
    for number, rule in enumerate(recipe.layers):
        where = f"recipe {recipe.name!r}, layers[{number}]"
        if rule.weights is not None:
            build_weight_binarizer(rule.weights, where=f"{where}.weights")
        if rule.inputs is not None:
            build_input_binarizer(rule.inputs, 1, where=f"{where}.inputs")
    build_losses(recipe.training.losses)
    where = f"recipe {recipe.name!r}, training.optimizer"
    look_up(OPTIMIZERS, recipe.training.optimizer.name, where=where, what="optimizer")
    return rewrites


def convert_model(
    spec: str,
    recipe: str = "xnor",
    *,
    model: str | None = None,
    trust_pickle: bool = False,
    input_shape: Sequence[int] | None = None,
    data: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    out: str | Path | None = None,
    dry_run: bool = False,
    replace: bool = False,
) -> Student:
    """Convert a model file or factory and write the run directory `NAME.bnn/`, unless it is a dry run.

    Raises: UsageError, RefusalError; nothing is written then.
    """
    text = recipe_text(recipe)
    parsed = load_recipe(recipe)
    check_recipe(parsed)
    loaded = load_model(spec, model=model, trust_pickle=trust_pickle)
    given = None if data is None else load_data(data, mean=mean, std=std)
    student = convert(loaded.module, parsed, input_shape=input_shape, data=given)
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
            recipe_text=text,
            plan=student.plan,
            data=student.data,
        )
    student.run = RunDirectory(path)
    return student


def open_run(path: str | Path | None = None) -> Student:
    """Student of a run directory, with its newest weights; by default of the newest one in the current folder.

    Raises: UsageError if there is none, ArtifactError if it is damaged.
    """
    run = find_run(None if path is None else Path(path), folder=Path.cwd())
    record = run.read()
    loaded = load_source(run, record)
    student = _rebuild(
        loaded, parse_recipe(run.file("recipe.toml").read_text("utf-8"), where=str(run.path)), record.input_shape
    )
    load_weights(student.model, run)
    student.run, student.data = run, record.data
    return student


def _rebuild(loaded: LoadedModel, recipe: Recipe, shape: tuple[int, ...]) -> Student:
    """The student as convert made it, before its own weights are loaded."""
    probe = probe_input(shape, None)
    teacher = trace(loaded.module, probe)
    plan = make_plan(recipe, layer_facts(teacher), input_shape=shape, model_bytes=module_bytes(loaded.module))
    model = copy.deepcopy(teacher)
    plan = run_rewrites(model, plan, check_recipe(recipe), probe=probe)
    return Student(model, teacher, plan, recipe, shape)


def finetune(
    student: Student,
    data: str | Data | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resume: bool = False,
    restart: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> TrainReport:
    """Fine-tune the student in place, with the original as its teacher.

    Options are those of `bnnconvert.train.finetune`: epochs, max_steps, batch_size, lr, device, seed, augment,
    mixed_precision, compile, workers.

    Raises: UsageError, RefusalError.
    """
    loaded = _training_data(student, data, mean, std)
    check_fits(loaded, student.input_shape, _outputs(student.teacher, probe_input(student.input_shape, None)))
    run = student.run
    main = int(os.environ.get("RANK", "0")) == 0
    if run is not None:
        if run.has_checkpoint and not (resume or restart):
            raise UsageError(
                f"{run.path}: holds a checkpoint; give --resume to go on with it, or --restart to begin anew."
            )
        if restart and main:
            for name in ("checkpoint.pt", "best.safetensors", "metrics.jsonl"):
                run.file(name).unlink(missing_ok=True)
        if not resume:
            student.model.load_state_dict(load_file(run.file("student.safetensors")))
        if main:
            run.write(run.read().model_copy(update={"data": _record(loaded)}))
    report = train_student(
        student.model,
        student.teacher,
        loaded,
        student.recipe.training,
        folder=None if run is None else run.path,
        resume=resume,
        progress=progress,
        **options,
    )
    student.data = _record(loaded)
    if run is not None and main:
        metrics = {"held_out_accuracy": report.held_out_accuracy, "epochs": float(report.epochs)}
        run.write(run.read().model_copy(update={"metrics": metrics}))
    return report


def evaluate(
    target: str | Path | Student | Session | nn.Module,
    data: str | Data | None = None,
    *,
    split: Literal["test", "train"] = "test",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    model: str | None = None,
    trust_pickle: bool = False,
    batch_size: int = 500,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationReport:
    """Top-1 accuracy of a run's student, an artifact or a float model on a split of the data.

    Raises: UsageError, RefusalError, ArtifactError.
    """
    opened = _open_target(target, model=model, trust_pickle=trust_pickle, threads=threads)
    kind, record = _kind(opened), _recorded(opened)
    loaded = _evaluation_data(data, record, mean, std)
    samples = loaded.test if split == "test" else loaded.train
    if samples is None:
        raise UsageError(f"{loaded.source}: has no test set; add test/ or val/, or give --split train.")
    predict = _predictor(opened, loaded)
    done = 0

    def watched(x: Any) -> Any:
        nonlocal done
        output = predict(x)
        done += len(x)
        if progress is not None:
            progress(done, len(samples))
        return output

    start = time.perf_counter()
    with torch.no_grad():
        accuracy = evaluate_samples(watched, samples, loaded, batch_size=batch_size, as_numpy=kind == "artifact")
    return EvaluationReport(
        accuracy.accuracy, accuracy.samples, kind, _label(target, opened), split, time.perf_counter() - start
    )


def export(student: Student, path: str | Path | None = None, *, format: str = "packed") -> ExportReport:
    """Write the student as a packed artifact, verified against it; by default NAME.packed.safetensors.

    Raises: UsageError, RefusalError, VerificationError; no file is left then.
    """
    write = look_up(TARGETS, format, where="export", what="format")
    name = student.run.name if student.run is not None else "model"
    target = Path(path) if path is not None else Path.cwd() / f"{name}.packed.safetensors"
    return write(
        student.model.cpu().eval(),
        target,
        golden_input=probe_input(student.input_shape, None)[0][:1],
        metadata=_metadata(student),
        teacher=student.teacher,
    )


def verify(
    artifact: str | Path,
    *,
    against: str | Path | Student | None = None,
    data: str | Data | None = None,
    split: Literal["test", "train"] = "test",
    samples: int | None = None,
    batch_size: int = 250,
    progress: Callable[[int, int], None] | None = None,
) -> GoldenReport | VerifyReport:
    """Run the artifact's golden input; with a run, compare it with that run's student, layer by layer.

    The comparison runs on the data's split if there is data, else on random input.

    Raises: ArtifactError, VerificationError for a golden output that is off.
    """
    session = Session(artifact)
    difference = session.golden_difference()
    if against is None:
        return GoldenReport(difference, len(session.artifact.golden_input))
    student = against if isinstance(against, Student) else open_run(against)
    if session.input_shape[1:] != student.input_shape[1:]:
        raise UsageError(
            f"{artifact}: takes inputs of shape {session.input_shape[1:]}, but the run's student takes "
            f"{student.input_shape[1:]}; give the run that it was exported from."
        )
    batches, total = _comparison_inputs(student, data, split, samples, batch_size)
    return compare_with_student(student.model, session, _watched(batches, total, progress))


def inspect(
    target: str,
    *,
    model: str | None = None,
    trust_pickle: bool = False,
    input_shape: Sequence[int] | None = None,
) -> Inspection:
    """What a model, a run or an artifact consists of.

    Raises: UsageError, RefusalError, ArtifactError.
    """
    opened = _open_target(target, model=model, trust_pickle=trust_pickle)
    if isinstance(opened, Session):
        return _inspect_artifact(target, opened)
    if isinstance(opened, Student):
        plan = opened.plan.to_json()
        assert opened.run is not None
        record = opened.run.read()
        summary = {
            "recipe": plan["recipe"],
            "input_shape": plan["input_shape"],
            "rewrites": plan["rewrites"],
            "totals": plan["totals"],
            "source": record.source,
            "data": None if record.data is None else record.data.model_dump(),
            "fine_tuned": opened.run.file("best.safetensors").exists(),
            "metrics": record.metrics,
        }
        return Inspection("run", str(opened.run.path), tuple(plan["layers"]), summary)
    shape, notes = _input_shape(opened, input_shape, None)
    facts = layer_facts(trace(opened, probe_input(shape, None)))
    layers = tuple(
        {"name": f.path} | asdict(f) | {"macs": f.macs, "float_bytes": f.float_bytes, "packed_bytes": f.packed_bytes()}
        for f in facts
    )
    totals = {"parameters": sum(p.numel() for p in opened.parameters()), "macs": sum(f.macs for f in facts)}
    summary = {"input_shape": list(shape), "notes": list(notes), "totals": totals | {"bytes": module_bytes(opened)}}
    return Inspection("model", target, layers, summary)


def _inspect_artifact(target: str, session: Session) -> Inspection:
    layers = tuple(
        {"name": node.name, "op": node.op, "layer": node.layer, "shape": [list(o.sized(1)) for o in node.outputs]}
        for node in session.program.nodes
    )
    tensors = session.artifact.tensors
    summary = {
        "metadata": session.metadata.model_dump(mode="json", exclude={"recipe_text"}),
        "input_shape": list(session.input_shape),
        "tensor_bytes": sum(a.nbytes for a in tensors.values()),
        "tensors": {name: {"dtype": str(a.dtype), "shape": list(a.shape)} for name, a in tensors.items()},
        "torch_nodes": [node.name for node in session.program.nodes if not node.op.startswith("bnnconvert.")],
    }
    return Inspection("artifact", target, layers, summary)


def probe_input(shape: Sequence[int], data: Data | None) -> tuple[Tensor]:
    """A few samples: of the training data if there is any, else standard normal, the same each time."""
    if data is None:
        generator = torch.Generator().manual_seed(0)
        return (torch.randn(PROBE_SAMPLES, *shape[1:], generator=generator),)
    count = min(PROBE_SAMPLES, len(data.train))
    images, _ = data.train.batch(torch.linspace(0, len(data.train) - 1, count).long())
    return (normalise(images, data.mean, data.std),)


def _input_shape(
    model: nn.Module, given: Sequence[int] | None, data: Data | None
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Input shape with batch 1, and what to tell the user about it."""
    if given is not None:
        return (1, *tuple(given)[1:]), ()
    if data is not None:
        return (1, *data.sample_shape), ()
    shape = guess_input_shape(model)
    shown = ",".join(map(str, shape))
    return shape, (f"Input shape {shown} guessed from the first layer; give another with --input-shape.",)


def _outputs(model: nn.Module, probe: tuple[Tensor, ...]) -> int | None:
    with torch.no_grad():
        output = model(*probe)
    return int(output.shape[1]) if isinstance(output, Tensor) and output.dim() == 2 else None


def _data(data: str | Data | None) -> Data | None:
    return load_data(data) if isinstance(data, str) else data


def _record(data: Data | None) -> DataRecord | None:
    if data is None:
        return None
    source = (
        data.source if is_factory(data.source) or not Path(data.source).exists() else str(Path(data.source).resolve())
    )
    return DataRecord(source=source, scale=data.scale, mean=data.mean, std=data.std, classes=data.classes)


def _training_data(
    student: Student, data: str | Data | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Data:
    if isinstance(data, Data):
        return data
    recorded = student.data
    if data is None and recorded is None:
        raise UsageError("There is no data to fine-tune on; give it with --data DIR.")
    if data is None or (recorded is not None and data == recorded.source):
        assert recorded is not None
        return load_data(recorded.source, mean=mean or recorded.mean or None, std=std or recorded.std or None)
    return load_data(data, mean=mean, std=std)


def _evaluation_data(
    data: str | Data | None, record: DataRecord | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Data:
    """The data, normalised as the run or artifact records it unless the caller says otherwise."""
    if isinstance(data, Data):
        return data
    if data is None and record is None:
        raise UsageError("There is no data to evaluate on; give it with --data DIR.")
    if record is not None and record.mean:
        mean, std = mean or record.mean, std or record.std
    return load_data(data if data is not None else record.source, mean=mean, std=std)  # type: ignore[union-attr]


def _open_target(
    target: str | Path | Student | Session | nn.Module,
    *,
    model: str | None = None,
    trust_pickle: bool = False,
    threads: int = 1,
) -> Student | Session | nn.Module:
    if not isinstance(target, str | Path):
        return target
    path = Path(target)
    if path.is_dir():
        return open_run(path)
    if model is None and path.name.endswith(".packed.safetensors"):
        return Session(path, threads=threads)
    return load_model(str(target), model=model, trust_pickle=trust_pickle).module


def _kind(opened: Student | Session | nn.Module) -> Literal["run", "artifact", "model"]:
    return "run" if isinstance(opened, Student) else "artifact" if isinstance(opened, Session) else "model"


def _label(target: object, opened: Student | Session | nn.Module) -> str:
    if isinstance(target, str | Path):
        return str(target)
    if isinstance(opened, Student):
        return str(opened.run.path) if opened.run is not None else "student"
    return opened.path if isinstance(opened, Session) else type(opened).__name__


def _recorded(opened: Student | Session | nn.Module) -> DataRecord | None:
    """What the target says about the data that it was made for."""
    if isinstance(opened, Student):
        return opened.data
    if isinstance(opened, Session) and opened.metadata.normalisation is not None:
        known = opened.metadata.normalisation
        return DataRecord(source="", scale=known.scale, mean=known.mean, std=known.std)
    return None


def _predictor(opened: Student | Session | nn.Module, data: Data) -> Callable[[Any], Any]:
    if isinstance(opened, Session):
        check_fits(data, opened.input_shape, None)
        return opened.run
    module = opened.model if isinstance(opened, Student) else opened
    if isinstance(opened, Student):
        check_fits(data, opened.input_shape, None)
    return module.cpu().eval()


def _metadata(student: Student) -> Metadata:
    record = None if student.run is None else student.run.read()
    data = student.data
    return Metadata(
        producer=f"bnnconvert {__version__}",
        recipe=student.recipe.name,
        recipe_text="" if student.run is None else student.run.file("recipe.toml").read_text("utf-8"),
        source="" if record is None else record.source,
        source_sha256="" if record is None else record.source_sha256,
        normalisation=None
        if data is None
        else Normalisation(scale="uint8" if data.scale == "uint8" else "as-is", mean=data.mean, std=data.std),
        classes=None if data is None else data.classes,
        metrics={} if record is None else record.metrics,
    )


def _comparison_inputs(
    student: Student, data: str | Data | None, split: str, samples: int | None, batch_size: int
) -> tuple[Iterable[Tensor], int]:
    """Input batches to compare on and their number of samples."""
    if data is None:
        x = torch.randn(samples or 64, *student.input_shape[1:], generator=torch.Generator().manual_seed(1))
        return x.split(batch_size), len(x)
    loaded = _evaluation_data(data, student.data, None, None)
    chosen = loaded.test if split == "test" else loaded.train
    if chosen is None:
        raise UsageError(f"{loaded.source}: has no test set; add test/ or val/, or give --split train.")
    count = min(samples or len(chosen), len(chosen))
    return _batches(chosen, loaded, count, batch_size), count


def _batches(samples: Samples, data: Data, count: int, size: int) -> Iterator[Tensor]:
    for begin in range(0, count, size):
        images, _ = samples.batch(torch.arange(begin, min(begin + size, count)))
        yield normalise(images, data.mean, data.std)


def _watched(batches: Iterable[Tensor], total: int, progress: Callable[[int, int], None] | None) -> Iterator[Tensor]:
    done = 0
    for x in batches:
        yield x
        done += len(x)
        if progress is not None:
            progress(done, total)


def _name(spec: str) -> str:
    """Name of a run for what the user typed: the file's, or the factory's."""
    if is_factory(spec):
        return spec.rpartition(":")[2]
    return Path(spec).stem
