"""Guess a model's input shape from its first layer and from which common sizes it takes.

A network that flattens into a linear layer takes one common size only, so trying finds it. One with global pooling
takes nearly all, so the order in which sizes are tried decides: it is the order of how usual they are for the first
layer. One channel suggests MNIST (28), a small kernel with stride 1 suggests CIFAR (32), a large or strided kernel
ImageNet (224). Two traps: an adaptive pool that has to enlarge its input hides that a size is too small, and
`x.view(-1, 400)` turns a wrong size into a wrong number of samples; neither counts as taking a size.
"""

import inspect
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bnnconvert.errors import UsageError, first_line
from bnnconvert.graph import evaluation
from bnnconvert.values.inputs import run_example

_GREY = (28, 32, 8, 64, 16, 224, 48, 96, 128, 256)
_SMALL = (32, 28, 64, 224, 96, 48, 128, 256, 16, 8, 160, 192, 299)
_LARGE = (224, 256, 299, 384, 192, 160, 128, 96, 64, 32, 512, 48, 28, 16, 8)
_ADAPTIVE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def guess_input_shape(module: nn.Module) -> tuple[int, ...]:
    """Input shape, with one sample, that the module takes in evaluation mode.

    Shapes: -> (1, C, H, W), or (1, K) where the first layer is linear and takes no images.

    Raises: UsageError where no common shape works.
    """
    if is_lazy(module):
        raise UsageError(
            f"{type(module).__name__} gets the shapes of its weights from the first input; give its shape with "
            "--input-shape, for example 1,3,32,32."
        )
    needed = [
        name
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.kind <= parameter.POSITIONAL_OR_KEYWORD and parameter.default is parameter.empty
    ]
    if len(needed) > 1:
        raise UsageError(
            f"{type(module).__name__} takes {len(needed)} inputs ({', '.join(needed)}); give the shape of each with "
            "--input-shape, in this order."
        )
    first = next((m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)), None)
    if first is None:
        raise UsageError(
            f"The input shape of {type(module).__name__} cannot be guessed, because it has no 2d convolution and no "
            "linear layer; give it with --input-shape, for example 1,3,32,32."
        )
    failure: Exception | None = None
    enlarging: tuple[int, ...] | None = None
    for shape in _candidates(module, first):
        try:
            taken, enlarges = _try(module, shape)
        except Exception as error:  # a user's forward may reject a wrong shape in any way; the last cause is reported
            failure = error
            continue
        if taken and not enlarges:
            return shape
        if taken and enlarging is None:
            enlarging = shape
    if enlarging is not None:
        return enlarging
    why = f" (the last one failed with: {first_line(failure)})" if failure is not None else ""
    table = next((m for m in module.modules() if isinstance(m, nn.Embedding)), None)
    example = "1,3,32,32" if table is None else f"1,16:int64:{table.num_embeddings} for 16 tokens"
    raise UsageError(
        f"No common image size fits {type(module).__name__}{why}; give the shape with --input-shape, for example "
        f"{example}."
    )


def is_lazy(module: nn.Module) -> bool:
    """Whether a parameter or buffer waits for a first input to get its shape."""
    return any(nn.parameter.is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers()))


def give_shapes(module: nn.Module, probe: tuple[Tensor, ...]) -> None:
    """Run a module with lazy parameters once, which gives them shapes and random values.

    Raises: UsageError where it does not take such an input.
    """
    if is_lazy(module):
        run_example(module.eval(), probe)


def _candidates(module: nn.Module, first: nn.Conv2d | nn.Linear) -> Iterator[tuple[int, ...]]:
    """Shapes to try, the most usual first; a timm model says itself what it was made for."""
    config = getattr(module, "pretrained_cfg", None)
    size = config.get("input_size") if isinstance(config, dict) else None
    if isinstance(first, nn.Conv2d):
        if isinstance(size, tuple | list) and len(size) == 3 and size[0] == first.in_channels:
            yield (1, *size)
        yield from ((1, first.in_channels, s, s) for s in _sizes(first))
        return
    # A linear layer behind a flattening takes images too, and images are what data sets hold.
    for channels in (1, 3):
        side = math.isqrt(first.in_features // channels)
        if side > 1 and channels * side * side == first.in_features:
            yield (1, channels, side, side)
    yield (1, first.in_features)


def _sizes(first: nn.Conv2d) -> tuple[int, ...]:
    """Image sizes in the order of how usual they are for such a first layer."""
    if max(first.stride) > 1 or max(first.kernel_size) > 5:
        return _LARGE
    return _GREY if first.in_channels == 1 else _SMALL


def _try(module: nn.Module, shape: tuple[int, ...]) -> tuple[bool, bool]:
    """Whether the module gives one output for one input of this shape, and whether an adaptive pool enlarged."""
    enlarged: list[nn.Module] = []

    def watch(pool: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if output.shape[-2] > inputs[0].shape[-2] or output.shape[-1] > inputs[0].shape[-1]:
            enlarged.append(pool)

    hooks = [m.register_forward_hook(watch) for m in module.modules() if isinstance(m, _ADAPTIVE)]
    try:
        with evaluation(module), torch.no_grad():
            output = module(torch.zeros(shape))
    finally:
        for hook in hooks:
            hook.remove()
    return _one_sample(output), bool(enlarged)


def _one_sample(output: Any) -> bool:
    """Whether every tensor of a possibly nested output has the batch size 1."""
    if isinstance(output, Tensor):
        return output.dim() > 0 and output.shape[0] == 1
    values = output.values() if isinstance(output, dict) else output
    return isinstance(output, dict | tuple | list) and all(map(_one_sample, values))
