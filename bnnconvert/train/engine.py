"""Hugging Face Accelerate as the engine: devices, processes and mixed precision."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import TorchDynamoPlugin, broadcast
from torch import Tensor, nn

from bnnconvert.errors import UsageError
from bnnconvert.tasks import Task
from bnnconvert.train.latent import set_stage
from bnnconvert.train.schedule import Span
from bnnconvert.values.inputs import Example, run_on


@contextmanager
def engine(
    *, device: str | None, mixed_precision: str, compiled: bool, distributed: DistributedDataParallelKwargs
) -> Iterator[Accelerator]:
    """An accelerator for one run; state of the process that was not there before is taken down again.

    Batches are split over the processes, so that a recipe's batch size and learning rate hold for any number of them.

    Raises: UsageError for a device that is not there.
    """
    was_initialized = is_initialized()
    with _chosen(device):
        accelerator = Accelerator(
            cpu=device is not None and torch.device(device).type == "cpu",
            mixed_precision=mixed_precision,
            dataloader_config=DataLoaderConfiguration(split_batches=True, use_seedable_sampler=False),
            kwargs_handlers=[distributed],
            dynamo_plugin=TorchDynamoPlugin(backend="inductor") if compiled else None,
        )
        try:
            yield accelerator
        finally:
            accelerator.free_memory()
            if not was_initialized:
                # Accelerate keeps device and precision for the whole process and refuses a second, different run.
                AcceleratorState._reset_state(reset_partial_state=True)


def _chosen(device: str | None) -> torch.cuda.device | nullcontext[None]:
    if device is None:
        return nullcontext()
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UsageError(f"--device {device}: no such device; use cpu, cuda or cuda:N.") from None
    if chosen.type == "cpu":
        return nullcontext()
    if chosen.type != "cuda" or (chosen.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {device}: not on this machine, which has {torch.cuda.device_count()} GPUs; use cpu."
        )
    return torch.cuda.device(chosen.index or 0)


def sums(accelerator: Accelerator, numbers: list[Tensor]) -> list[float]:
    """Sums of numbers over all processes, in one exchange."""
    local = torch.stack([number.detach().to(torch.float64) for number in numbers])
    total: list[float] = accelerator.reduce(local, reduction="sum").tolist()
    return total


def share_buffers(model: nn.Module) -> None:
    """Give every process the main one's buffers: each has gathered batch norm statistics of its own batches."""
    for buffer in model.buffers():
        broadcast(buffer)


@torch.no_grad()
def share_parameters(model: nn.Module) -> None:
    """Give every process the main one's parameters: what each has computed by itself may differ in the last digits."""
    for parameter in model.parameters():
        whole = parameter.contiguous()
        broadcast(whole)
        parameter.copy_(whole)


def has_unused_parameters(student: nn.Module, spans: tuple[Span, ...], x: Example, task: Task) -> bool:
    """Whether some stage leaves a trainable parameter without a gradient, found by trying on a copy.

    Shapes: x (N, C, ...), a few of the student's inputs, or a tuple of such.
    """
    for weights, inputs in {(span.stage.weights, span.stage.inputs) for span in spans}:
        trial = copy.deepcopy(student).train()
        set_stage(trial, weights=weights, inputs=inputs)
        torch.autograd.backward(task.output(run_on(trial, x)).float().sum())
        if any(p.requires_grad and p.grad is None for p in trial.parameters()):
            return True
    return False
