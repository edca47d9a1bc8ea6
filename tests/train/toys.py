"""Students small enough to train in a second, data that they can learn, and a run over both."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Tracer

from bnnconvert.binarizers.admm import AdmmWeight
from bnnconvert.binarizers.base import Encoder, Plane
from bnnconvert.binarizers.hwgq import HwgqInput
from bnnconvert.binarizers.shifted_sign import ShiftedSignInput
from bnnconvert.binarizers.sign import SignInput, SignWeight
from bnnconvert.binarizers.ternary import TernaryWeight
from bnnconvert.estimators.approx_sign import ApproxSign
from bnnconvert.estimators.clip import Clip
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.layers.conv2d import BinaryConv2d
from bnnconvert.layers.linear import BinaryLinear
from bnnconvert.train.loop import finetune
from bnnconvert.values.data import Data, Images
from bnnconvert.values.inputs import specs_of
from bnnconvert.values.progress import Silent
from bnnconvert.values.recipe import Training
from bnnconvert.values.report import TrainReport

CLASSES = 3

# Threads only wait for each other on tensors of this size, all the more beside other jobs.
torch.set_num_threads(1)


class LeafTracer(Tracer):
    """Keeps binary layers whole, as the converter's own tracer does."""

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return isinstance(module, BinaryLayer) or super().is_leaf_module(module, path)


class GainInput(SignInput):
    """A sign with a learned gain that only the binary form uses, so that a float stage gives it no gradient."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, estimator=Clip())
        self.gain = nn.Parameter(torch.ones(()))

    def planes(self, x: Tensor) -> list[Plane]:
        return [Plane(plane.pm1, self.gain) for plane in super().planes(x)]

    def encoder(self) -> Encoder:
        plain = super().encoder()
        return Encoder(plain.thresholds, plain.start, self.gain.detach().reshape(1))


def trace(model: nn.Module) -> GraphModule:
    return GraphModule(model, LeafTracer().trace(model))


def float_net(*, norm: bool = True, drop: float = 0.1) -> nn.Sequential:
    """A convolutional network of a few hundred parameters for 3-channel images of 8x8."""
    layers: list[tuple[str, nn.Module]] = [
        ("stem", nn.Conv2d(3, 6, 3, padding=1)),
        ("stem_norm", nn.BatchNorm2d(6) if norm else nn.Identity()),
        ("conv", nn.Conv2d(6, 8, 3, stride=2, padding=1)),
        ("conv_norm", nn.BatchNorm2d(8) if norm else nn.Identity()),
        ("act", nn.Hardtanh()),
        ("drop", nn.Dropout(drop)),
        ("pool", nn.AdaptiveAvgPool2d(2)),
        ("flatten", nn.Flatten()),
        ("hidden", nn.Linear(32, 8)),
        ("head", nn.Linear(8, CLASSES)),
    ]
    return nn.Sequential(OrderedDict(layers))


def make_teacher(*, seed: int = 0, norm: bool = True, drop: float = 0.1) -> GraphModule:
    torch.manual_seed(seed)
    return trace(float_net(norm=norm, drop=drop)).eval()


def make_student(*, seed: int = 1, norm: bool = True, drop: float = 0.1, gain: bool = False) -> GraphModule:
    """The same network with a binary convolution and a binary linear layer."""
    torch.manual_seed(seed)
    net = float_net(norm=norm, drop=drop)
    net.conv = BinaryConv2d.from_float(
        net.conv,
        weight_binarizer=SignWeight(estimator=Clip()),
        input_binarizer=ShiftedSignInput(6, estimator=ApproxSign()),
    )
    net.hidden = BinaryLinear.from_float(
        net.hidden,
        weight_binarizer=SignWeight(estimator=Clip()),
        input_binarizer=GainInput(32) if gain else SignInput(32, estimator=Clip()),
    )
    return trace(net)


def make_admm_student() -> GraphModule:
    """A student whose binary weights are ADMM's."""
    student = make_student()
    for name in ("conv", "hidden"):
        layer = student.get_submodule(name)
        layer.weight_binarizer = AdmmWeight(tuple(layer.weight.shape), estimator=Clip(), every=4)
        layer.weight_binarizer.calibrate(layer.weight.detach())
    return student


def make_ternary_student() -> GraphModule:
    """A student whose weights can be fitted layer by layer."""
    student = make_student(drop=0.0)
    for path, inputs in (("conv", HwgqInput(6)), ("hidden", SignInput(32, estimator=Clip()))):
        layer = student.get_submodule(path)
        layer.weight_binarizer, layer.input_binarizer = TernaryWeight(), inputs
    return student


def make_data(*, samples: int = 120, seed: int = 0, classes: int = CLASSES) -> Data:
    """Colour images of 8x8 whose brightest channel is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % classes
    images = torch.randint(0, 120, (samples, 3, 8, 8), generator=generator, dtype=torch.uint8)
    images[torch.arange(samples), labels % 3] += 110
    return Data(
        train=Images(images, labels),
        test=None,
        classes=None,
        specs=specs_of((1, 3, 8, 8)),
        scale="uint8",
        mean=(0.3, 0.3, 0.3),
        std=(0.25, 0.25, 0.25),
        source="toy",
    )


def make_training(**changes: Any) -> Training:
    """A few quick epochs."""
    quick: dict[str, Any] = {"epochs": 3, "batch_size": 16, "batch_norm_batches": 3, "validation_share": 0.2}
    quick["optimizer"] = {"name": "adam", "lr": 0.01}
    return Training.model_validate(quick | changes)


def run(folder: Path | None = None, **changes: Any) -> tuple[GraphModule, TrainReport]:
    """A whole run on the toys: the student and the report. `training` may hold changes of the recipe."""
    student = changes.pop("student", None) or make_student()
    teacher = changes.pop("teacher", None) or make_teacher()
    data = changes.pop("data", None) or make_data()
    training = make_training(**changes.pop("training", {}))
    changes.setdefault("device", "cpu")
    report = finetune(student, teacher, data, training, folder=folder, **changes)
    return student, report


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    """Whether two state dicts hold the same bits."""
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


class Stop(Exception):
    """Ends a run from outside."""


class StopAt(Silent):
    """Stops a run after a number of steps."""

    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, *, step: int, loss: float, accuracy: float, seconds_left: float) -> None:
        if step == self.at:
            raise Stop


STAGES = [
    {"share": 0.34, "weights": False},
    {"share": 0.66, "lr": 0.02},
]
"""Two stages over 18 steps: the second begins in the epoch after the first, at step 6."""

FITTED = [
    {"share": 0.2, "weights": False, "inputs": False},
    {"share": 0.4, "weights": False},
    {"share": 0.4, "fit": "layer-wise"},
]
"""Three stages over 18 steps: the weights are fitted at step 10, inside the second epoch."""
