"""A converted model as the commands and the Python API hand it around, and where it gets its data."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from bnnconvert.errors import UsageError
from bnnconvert.load.data import load_data
from bnnconvert.load.user_code import is_factory
from bnnconvert.tasks import CLASSIFICATION, Task
from bnnconvert.values.data import Data, Samples
from bnnconvert.values.inputs import Example, Inputs, as_tuple
from bnnconvert.values.plan import Plan
from bnnconvert.values.recipe import Recipe, Rule
from bnnconvert.values.run import DataRecord, RunDirectory
from bnnconvert.values.steering import Steering

PROBE_SAMPLES, PROBE_NUMBERS, FEWEST = 8, 2**18, 2
"""Samples of the probe input: enough for batch statistics, of large inputs fewer, as each has many positions."""
CALIBRATION_SAMPLES, CALIBRATION_BATCH = 512, 64


@dataclass
class Student:
    """A converted model: an ordinary trainable module, its teacher, and how it came about."""

    model: GraphModule
    teacher: GraphModule
    plan: Plan
    recipe: Recipe
    inputs: Inputs
    shape_is_guessed: bool = False
    run: RunDirectory | None = None
    data: DataRecord | None = None
    task: str = "classification"
    notes: tuple[str, ...] = ()
    steering: Steering = field(default_factory=Steering)
    kept: tuple[Rule, ...] = ()
    """Rules that conversion has put in front of the recipe's own."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the first input, with one sample; the only one where there are images to learn from."""
        return self.inputs[0].shape


def probe_input(inputs: Inputs, data: Data | None = None) -> tuple[Tensor, ...]:
    """A few samples: of the training data if there is any, else random, the same each time."""
    numbers = sum(math.prod(spec.shape[1:]) for spec in inputs)
    samples = max(FEWEST, min(PROBE_SAMPLES, PROBE_NUMBERS // numbers))
    if data is None:
        generator = torch.Generator().manual_seed(0)
        return tuple(spec.sample(samples, generator) for spec in inputs)
    return as_tuple(data.inputs(data.train, data.train.spread(samples)))


def calibration_batches(data: Data, *, samples: Samples | None = None) -> Iterator[Example]:
    """Model inputs from training images, or other samples, spread evenly over the set and mixed, the same each time.

    Image folders come class by class, and batches of one class would have too little variance.
    """
    samples = data.train if samples is None else samples
    chosen = samples.spread(CALIBRATION_SAMPLES)
    chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))]
    for indices in torch.split(chosen, CALIBRATION_BATCH):
        yield data.inputs(samples, indices)


def outputs_of(model: nn.Module, probe: tuple[Tensor, ...]) -> int | None:
    """Number of the model's logits, or None if its output is something else."""
    with torch.no_grad():
        output = model(*probe)
    return int(output.shape[1]) if isinstance(output, Tensor) and output.dim() == 2 else None


def classes_of(model: nn.Module, probe: tuple[Tensor, ...], task: Task) -> int | None:
    """Number of the model's logits where the task is to tell classes, so that labels can be compared with it."""
    return outputs_of(model, probe) if task.name == "classification" else None


def data_record(data: Data | None) -> DataRecord | None:
    """What later commands need to know of the data, a folder by its full path."""
    if data is None:
        return None
    source = (
        data.source if is_factory(data.source) or not Path(data.source).exists() else str(Path(data.source).resolve())
    )
    return DataRecord(source=source, scale=data.scale, mean=data.mean, std=data.std, classes=data.classes)


def evaluation_data(
    data: str | Data | None,
    record: DataRecord | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    *,
    purpose: str = "evaluate",
    task: Task = CLASSIFICATION,
) -> Data:
    """The data, normalised as the run or artifact records it unless the caller says otherwise."""
    if isinstance(data, Data):
        return data
    if data is None and (record is None or not record.source):
        raise UsageError(f"There is no data to {purpose} on; give it with --data DIR.")
    if record is not None and record.mean:
        mean, std = mean or record.mean, std or record.std
    return load_data(data if data is not None else record.source, mean=mean, std=std, task=task)  # type: ignore[union-attr]
