"""Weights that become binary are fitted layer by layer, as the second step of TSQ has it.

In the order of execution, each layer gets the patches that the network with the layers before it already fitted gives
it, and should lead to what it leads to in the network with float weights. What is between a layer and the quantizer
that reads it - batch norm with its statistics as they stand, a max-pool, which takes one of the codes - belongs to the
fit. Where something else reads the output, such as a residual sum, the output itself is fitted.

Latent weights become the codes times their scale, which their binarizer gives back.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm

from bnnconvert.errors import UsageError
from bnnconvert.graph import BATCH_NORMS, PASS_THROUGH, evaluation, module_of, only_user
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.layers.embedding import BinaryEmbedding
from bnnconvert.train.batches import generator_for
from bnnconvert.train.latent import binary_layers
from bnnconvert.train.layer_solver import Codes, Fit, Weights, fit
from bnnconvert.train.views import Views
from bnnconvert.train.walk import Walk, together
from bnnconvert.values.inputs import alone
from bnnconvert.values.recipe import Training

SAMPLES = 1024
"""How many samples to fit on, fewer where that is too much to look at together."""
PATCHES, PER_WEIGHT = 2**15, 8
"""Patches drawn for a layer, or so many for each weight of a filter where those are more."""


def refuse_unfit(student: nn.Module, training: Training) -> None:
    """Refuse a run with a layer-wise fit of a student that has weights of another form than codes times a scale.

    Raises: UsageError naming the layer.
    """
    if all(stage.fit is None for stage in training.stages):
        return
    for path, layer in binary_layers(student):
        if isinstance(layer, BinaryEmbedding):
            raise UsageError(
                f"training.stages: a layer-wise `fit` is for layers that multiply, and the embedding {path} looks up; "
                "keep it float, or leave `fit` out."
            )
        if layer.weight_binarizer.choices is None or layer.gain is not None:
            raise UsageError(
                f"training.stages: a layer-wise `fit` is for weights that are codes times a scale per filter, without "
                f"a gain, and those of {path} are not; leave `fit` out."
            )


def fit_batches(views: Views, size: int) -> list[Tensor]:
    """Batches of `size` that a fit looks at, the same each time. Shapes: (N, C, ...)."""
    batches = views.batches(math.ceil(SAMPLES / size), size)
    return [alone(x, "Fitting weights layer by layer") for x in together(batches)]


@torch.no_grad()
def fit_weights(student: GraphModule, batches: list[Tensor], *, seed: int, told: Callable[[str], None]) -> None:
    """Make the weights of a student binary, in place; its inputs are what the stage has them.

    Shapes: batches of (N, C, ...), the student's input.
    """
    with evaluation(student):
        _fit_in_turn(student, batches, seed, told)


def _fit_in_turn(student: GraphModule, batches: list[Tensor], seed: int, told: Callable[[str], None]) -> None:
    layers = dict(binary_layers(student))
    reference, fitted = Walk(student, batches), Walk(student, batches)
    done: set[BinaryLayer] = set()
    for node in student.graph.nodes:
        layer = module_of(student, node)
        reference.take(node)  # first: its layers are still float when it comes to them
        if isinstance(layer, BinaryLayer) and layer not in done:
            done.add(layer)
            draws = generator_for(seed, "fit", str(node.target))
            codes = _codes_after(student, node, layer)
            found = _fit(layer, fitted.inputs(node), reference.outputs(node), codes, draws)
            shares = " %, now ".join(f"{100 * share:.2f}" for share in found.shares)
            what = "outputs" if codes is None else "codes"
            told(f"{node.target} ({len(done)} of {len(layers)}) fitted: error of its {what} {shares} %.")
        fitted.take(node)


def _fit(
    layer: BinaryLayer, inputs: Iterator[Tensor], outputs: Iterator[Tensor], codes: Codes | None, draws: torch.Generator
) -> Fit:
    """Set a layer's weights."""
    patches, wanted = _drawn(layer, list(inputs), outputs, draws)
    assert layer.weight_binarizer.choices is not None
    groups = len(patches)
    start = layer.weight_binarizer(layer.weight).flatten(1).unflatten(0, (groups, -1))
    scale = start.abs().amax(dim=2)
    start = Weights((start / scale.clamp(min=torch.finfo(scale.dtype).tiny)[..., None]).round(), scale)
    found = fit(patches, wanted, start, choices=layer.weight_binarizer.choices, codes=codes)
    layer.weight.copy_(found.weights.values.reshape(layer.weight.shape))
    layer.weight_binarizer.calibrate(layer.weight)
    layer.weights_are_binary = True
    return found


def _drawn(
    layer: BinaryLayer, inputs: list[Tensor], outputs: Iterator[Tensor], draws: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Patches that a layer sees, and the outputs without bias that belong to them. Shapes: (G, P, n), (G, P, O / G)."""
    share = max(PATCHES, PER_WEIGHT * layer.weight[0].numel()) // len(inputs)
    bias = layer.effective_bias()
    patches, wanted = [], []
    for x, y in zip(inputs, outputs, strict=True):
        seen, given = layer.effective_windows(x), layer.positions(y)
        count = seen.shape[0] * seen.shape[3]
        chosen = torch.randperm(count, generator=draws)[:share].to(x.device)
        sample, position = chosen // seen.shape[3], chosen % seen.shape[3]
        patches.append(seen[sample, :, :, position])  # (P, G, n)
        wanted.append(given[sample, :, :, position])
    together = torch.cat(wanted).transpose(0, 1)
    if bias is not None:
        together = together - bias.reshape(len(together), 1, -1)
    return torch.cat(patches).transpose(0, 1).contiguous(), together


def _codes_after(student: GraphModule, node: Node, layer: BinaryLayer) -> Codes | None:
    """The quantizer that alone reads a layer's output, and how the output gets there; None where there is none."""
    bias = layer.effective_bias()
    s = torch.ones(len(layer.weight), device=layer.weight.device)
    t = torch.zeros_like(s) if bias is None else bias.clone()
    while (reader := only_user(node)) is not None:
        node, module = reader, module_of(student, reader)
        if isinstance(module, BATCH_NORMS) and isinstance(module, _BatchNorm) and module.running_mean is not None:
            if module.num_features != len(s):  # of sequences, whose axis 1 is another
                return None
            assert module.running_var is not None
            factor = (module.running_var + module.eps).rsqrt()
            factor = factor if module.weight is None else factor * module.weight
            s, t = s * factor, (t - module.running_mean) * factor
            t = t if module.bias is None else t + module.bias
        elif isinstance(module, BinaryLayer):
            quantize = module.input_binarizer if module.inputs_are_binary else None
            ends = None if quantize is None else quantize.clip_range()
            return None if quantize is None or ends is None else Codes(s, t, quantize, *ends)
        elif not isinstance(module, (*PASS_THROUGH, nn.MaxPool2d)):
            return None
    return None
