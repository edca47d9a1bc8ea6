"""Write a student in one of the export formats."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.fx import GraphModule

from bnnconvert import __version__
from bnnconvert.artifact.schema import Metadata, Normalisation
from bnnconvert.errors import RefusalError, UsageError
from bnnconvert.exporters.table import TARGETS
from bnnconvert.exporters.verify import Recorder, student_bits
from bnnconvert.graph import inputs_inside
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.load.task import load_task
from bnnconvert.lower.edges import calibrate, with_edges
from bnnconvert.lower.predictors import calibrate as calibrate_predictors
from bnnconvert.lower.predictors import tallies, with_predictors
from bnnconvert.pipeline.student import Student, calibration_batches, evaluation_data, probe_input
from bnnconvert.tasks import Task
from bnnconvert.train import evaluate_samples
from bnnconvert.values.data import Data
from bnnconvert.values.inputs import Example, as_tuple, specs_of_example
from bnnconvert.values.plan import Plan
from bnnconvert.values.report import EdgesReport, ExportReport, PredictedLayerReport, PredictionReport
from bnnconvert.values.tables import look_up

EDGES = ("float", "int8")


def export(
    student: Student,
    path: str | Path | None = None,
    *,
    format: str = "packed",
    part: str | None = None,
    edges: Literal["float", "int8"] = "float",
    data: str | Data | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ExportReport:
    """Write the student in a format, verified against it; by default the packed artifact NAME.packed.safetensors.

    `part` is the path of a graph inside code that no file can hold, which is exported by itself.
    `edges` says how the float layers at the ends are stored. Those of 8 bits, others that the plan has in 8 bits, and
    predictors are calibrated on the data, by default the run's, and the report says what they cost in accuracy.

    Raises: UsageError, RefusalError, VerificationError; no file is left then.
    """
    wanted = look_up(TARGETS, format, where="export", what="format")
    name = student.run.name if student.run is not None else "model"
    name = f"{name}.{part}" if part is not None else name
    target = Path(path) if path is not None else Path.cwd() / f"{name}{wanted.suffix}"
    look_up({name: name for name in EDGES}, edges, where="export", what="way to store the ends")
    layers, shares = _int8_layers(student, edges), student.plan.predicted
    if part is not None and (layers or shares):
        raise RefusalError(
            "8-bit layers and predictors are for whole models; leave out --part, or convert without them."
        )
    if not (layers or shares) and not (data is None and mean is None and std is None):
        raise UsageError("export: data is for calibrating 8-bit ends; give --edges int8 with it, or leave it out.")
    model, cost, predictions = student.model.cpu().eval(), None, None
    if layers or shares:
        kind = load_task(student.task)
        found = evaluation_data(data, student.data, mean, std, purpose="calibrate", task=kind)
        if layers:
            model, cost = _in_int8(model, layers, found, kind)
        if shares:
            model, predictions = _predicted(model, student.plan, found, kind)
    teacher, golden = student.teacher, probe_input(student.inputs)
    if part is not None:
        golden = _inputs_of_part(model, part, golden)
        model, teacher = (network.get_submodule(part) for network in (model, teacher))  # type: ignore[assignment]
    report = wanted.write(
        model,
        target,
        golden_input=tuple(x[:1] for x in golden),
        metadata=_metadata(student, cost, predictions),
        teacher=teacher,
    )
    return dataclasses.replace(report, edges=cost, predictions=predictions)


def _inputs_of_part(model: GraphModule, part: str, probe: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a graph inside other code is given, the first time it is called."""
    parts = inputs_inside(model, probe)
    if not parts:
        raise UsageError(f"--part {part}: the whole model is one graph; leave out --part.")
    given = look_up(parts, part, where="export", what="part")
    if len(given[0]):
        return given
    draws = torch.Generator().manual_seed(0)  # a detector has found nothing in the probe, say
    return tuple(spec.sample(1, draws) for spec in specs_of_example(given))


def _int8_layers(student: Student, edges: str) -> list[str]:
    """Paths of the float layers to be stored in 8 bits: those of the plan, and the ends where they are asked for."""
    floats = [layer for layer in student.plan.layers if layer.decision == "float"]
    ends = [layer for layer in floats if layer.facts.is_first or layer.facts.is_last]
    if edges == "int8" and not ends:
        raise RefusalError("The student has no float layer at its ends; leave out --edges int8.")
    taken = [layer.facts.path for layer in ends if layer.predict is not None]
    if edges == "int8" and taken:
        raise RefusalError(f"{taken[0]}: has a predictor and multiplies in float; leave out --edges int8.")
    return [layer.facts.path for layer in floats if layer.int8 or (edges == "int8" and layer in ends)]


def _in_int8(before: GraphModule, layers: list[str], data: Data, task: Task) -> tuple[GraphModule, EdgesReport]:
    """A student with these float layers in 8 bits, and what that costs."""
    batches = list(calibration_batches(data))
    after = with_edges(before, calibrate(before, layers, batches))
    compared = _accuracies(before, after, data, task)
    with torch.no_grad():
        flipped = _flipped(before, after, batches[0])
    return after, EdgesReport(tuple(layers), *compared, flipped)


def _predicted(before: GraphModule, plan: Plan, data: Data, task: Task) -> tuple[GraphModule, PredictionReport]:
    """A student with the plan's predictors, and what they save and cost."""
    after = with_predictors(before, calibrate_predictors(before, plan.predicted, calibration_batches(data)))
    layers = []
    for path, tally in tallies(after, list(plan.predicted), calibration_batches(data, samples=data.test)).items():
        layer = plan.layer(path)
        assert layer is not None
        avoided, missed = 1 - tally.computed / tally.outputs, tally.missed / max(1, tally.positive)
        layers.append(PredictedLayerReport(path, layer.now.macs, avoided, missed))
    return after, PredictionReport(tuple(layers), *_accuracies(before, after, data, task))


def _accuracies(before: GraphModule, after: GraphModule, data: Data, task: Task) -> tuple[int, str, float, float]:
    """Number of samples, their split, and the task's score of two students on them."""
    split, samples = ("train", data.train) if data.test is None else ("test", data.test)
    with torch.no_grad():
        one, two = (evaluate_samples(model, samples, data, task=task, batch_size=250) for model in (before, after))
    return one.samples, split, one.accuracy, two.accuracy


def _flipped(before: GraphModule, after: GraphModule, x: Example) -> float:
    """Share of the first binary layer's input bits in which two students differ; 0 where no layer has binary inputs."""
    bits = []
    for model in (before, after):
        recorder = Recorder(model)
        recorder.run(*as_tuple(x))
        for path, inputs in recorder.inputs.items():
            layer = model.get_submodule(path)
            assert isinstance(layer, BinaryLayer)
            if layer.input_binarizer is not None:
                bits.append(student_bits(layer, inputs[0]))
                break
    return float((bits[0] != bits[1]).float().mean()) if bits else 0.0


def _metadata(student: Student, cost: EdgesReport | None, predictions: PredictionReport | None) -> Metadata:
    record = None if student.run is None else student.run.read()
    data = student.data
    metrics = {} if record is None else dict(record.metrics)
    if cost is not None:  # what was measured before is not this file's
        metrics = {f"float_ends_{name}": value for name, value in metrics.items()}
        metrics[f"int8_ends_{cost.split}_accuracy"] = cost.accuracy_int8
    if predictions is not None:
        metrics = {f"without_predictors_{name}": value for name, value in metrics.items()}
        metrics[f"predicted_{predictions.split}_accuracy"] = predictions.accuracy_predicted
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
        metrics=metrics,
    )
