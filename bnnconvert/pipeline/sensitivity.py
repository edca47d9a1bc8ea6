"""What each layer of a run costs by being binary: alone in the float network, and as the one that stays float.

Batch norm is re-estimated for each of these networks, on other samples than they are measured on, and nothing is
trained; so the numbers rank layers, and fine-tuning wins most of them back.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.nn import functional as F

from bnnconvert.errors import RefusalError, UsageError
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.pipeline.convert import open_run
from bnnconvert.pipeline.recipe_check import check_recipe
from bnnconvert.pipeline.student import Student, evaluation_data, outputs_of, probe_input
from bnnconvert.pipeline.targets import label_of
from bnnconvert.rewrite.runner import run_rewrites
from bnnconvert.train import prepare, reestimate_batch_norm
from bnnconvert.values.data import Data, check_fits
from bnnconvert.values.inputs import alone
from bnnconvert.values.plan import LayerPlan
from bnnconvert.values.sensitivity import Cost, LayerSensitivity, SensitivityReport

BATCH, FITTED = 128, 512
"""Samples of a batch, and those that batch norm is re-estimated on."""


def sensitivity(
    run: str | Path | Student | None = None,
    data: str | Data | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    samples: int = 1024,
    device: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SensitivityReport:
    """Cost of each binary layer of a run, on training images.

    Raises: UsageError, RefusalError.
    """
    student = run if isinstance(run, Student) else open_run(run)
    if student.task != "classification":
        raise RefusalError(f"The run's task is {student.task}; only classifiers can be measured here.")
    loaded = evaluation_data(data, student.data, mean, std, purpose="measure")
    outputs = outputs_of(student.teacher, probe_input(student.inputs))
    check_fits(loaded, student.inputs, outputs)
    if outputs is None:
        raise RefusalError("The model's output is no class logits (N, classes); only classifiers can be measured here.")
    ruler = Ruler(student.teacher, loaded, samples=samples, device=device)
    layers = [layer for layer in student.plan.layers if layer.decision != "float"]
    found = []
    for done, layer in enumerate(layers):
        if progress is not None:
            progress(done, len(layers))
        found.append(_measure(student, layer, ruler))
    return SensitivityReport(
        target=label_of(run, student),
        recipe=student.recipe.name,
        samples=ruler.samples,
        teacher_accuracy=ruler.teacher_accuracy,
        binary=ruler.cost(copy.deepcopy(student.model)),
        layers=tuple(found),
    )


class Ruler:
    """Measures networks against a teacher: some training images to fit batch norm to, others to measure on."""

    def __init__(self, teacher: GraphModule, data: Data, *, samples: int, device: str | None) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        chosen = data.train.spread(FITTED + samples)
        chosen = chosen[
            torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))
        ]  # folders come by class
        fitted, measured = chosen[:FITTED], chosen[FITTED : FITTED + samples]
        if len(measured) == 0:
            raise UsageError(f"{data.source}: has too few training images to measure on; give more data.")
        self._data, self._fitted, self._measured = data, fitted, measured
        self.samples = len(measured)
        twin = copy.deepcopy(teacher).to(self.device).eval()
        with torch.no_grad():
            self._teacher = [F.log_softmax(twin(x).float(), dim=1) for x, _ in self._batches(measured)]
        right = sum(
            int((t.argmax(1) == y).sum()) for t, (_, y) in zip(self._teacher, self._batches(measured), strict=True)
        )
        self.teacher_accuracy = right / self.samples

    @torch.no_grad()
    def cost(self, network: GraphModule, *, calibrate: bool = False) -> Cost:
        """Cost of a network after its batch norm is re-estimated, in place; `calibrate` sets its binarizers, too."""
        network.to(self.device)
        fit = prepare if calibrate else reestimate_batch_norm
        fit(network, (x for x, _ in self._batches(self._fitted)))
        network.eval()
        divergence, right = 0.0, 0
        for teacher, (x, labels) in zip(self._teacher, self._batches(self._measured), strict=True):
            ours = F.log_softmax(network(x).float(), dim=1)
            divergence += float(F.kl_div(ours, teacher, reduction="sum", log_target=True))
            right += int((ours.argmax(1) == labels).sum())
        return Cost(divergence / self.samples, right / self.samples)

    def _batches(self, indices: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for part in torch.split(indices, BATCH):
            _, labels = self._data.train.batch(part)
            x = alone(self._data.inputs(self._data.train, part), "Sensitivity")
            yield x.to(self.device), labels.to(self.device)


def _measure(student: Student, layer: LayerPlan, ruler: Ruler) -> LayerSensitivity:
    path = layer.facts.path
    return LayerSensitivity(
        layer=path,
        decision=layer.decision,
        macs=layer.facts.macs,
        float_bytes=layer.facts.float_bytes,
        packed_bytes=layer.bytes,
        alone_binary=ruler.cost(_alone_binary(student, path), calibrate=True),
        alone_float=ruler.cost(_alone_float(student, path)),
    )


def _alone_binary(student: Student, path: str) -> GraphModule:
    """The teacher with the recipe applied to this layer only."""
    layers = tuple(
        p if p.facts.path == path else replace(p, decision="float", reason="measured without it")
        for p in student.plan.layers
    )
    network = copy.deepcopy(student.teacher)
    probe = probe_input(student.inputs)
    run_rewrites(network, replace(student.plan, layers=layers), check_recipe(student.recipe), probe=probe)
    return network


def _alone_float(student: Student, path: str) -> GraphModule:
    """The student with this layer's operands float."""
    network = copy.deepcopy(student.model)
    layer = network.get_submodule(path)
    assert isinstance(layer, BinaryLayer)
    layer.weights_are_binary = layer.inputs_are_binary = False
    return network
