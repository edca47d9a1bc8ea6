"""Fine-tuning: epochs over the training part, stages, checkpoints, and the best weights at the end.

A run is a function of its settings and its seed. Every random number comes from (seed, epoch, step), the learning
rate from the step, so a run that goes on from a checkpoint ends with the same weights as one that was never stopped.
"""

import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import nn
from torch.fx import GraphModule

from bnnconvert.tasks import CLASSIFICATION, Task
from bnnconvert.train.augment import Choice, choose
from bnnconvert.train.batches import (
    EpochBatches,
    Sampling,
    plain_loader,
    preserved_randomness,
    to_input,
    train_loader,
    whole_batch,
)
from bnnconvert.train.calibrate import set_batch_norm_momentum, train_mode
from bnnconvert.train.checkpoint import State, collect_parts, restore_parts
from bnnconvert.train.diagnose import refuse_bad_parameters
from bnnconvert.train.engine import engine, has_unused_parameters, share_buffers
from bnnconvert.train.gradients import GradientQuantizer
from bnnconvert.train.latent import advance_schedules, freeze_weights, planes_together, set_stage, weight_signs
from bnnconvert.train.layer_wise import refuse_unfit
from bnnconvert.train.layout import keep_gradient_layout, use_layout
from bnnconvert.train.metrics import Tally, measure_accuracy
from bnnconvert.train.monitor import dead_channels, flip_ratios
from bnnconvert.train.objective import Objective
from bnnconvert.train.optimizers import add_network, make_optimizer
from bnnconvert.train.record import Recorder
from bnnconvert.train.schedule import Span, learning_rate, span_at, stage_spans
from bnnconvert.train.setup import Setup, comparable_settings, doubts, override, refuse_half
from bnnconvert.train.stages import Stages
from bnnconvert.train.step import Stepper
from bnnconvert.train.views import Views
from bnnconvert.values.data import Data
from bnnconvert.values.inputs import given_as
from bnnconvert.values.progress import Progress, Silent
from bnnconvert.values.recipe import Training
from bnnconvert.values.report import EpochRecord, TrainReport

EVALUATION_BATCH = 512


def finetune(
    student: GraphModule,
    teacher: GraphModule | None,
    data: Data,
    training: Training,
    *,
    folder: Path | None = None,
    device: str | None = None,
    seed: int = 0,
    epochs: int | None = None,
    max_steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    validation_share: float | None = None,
    resume: bool = False,
    augment: Choice = "auto",
    mixed_precision: Literal["no", "fp16", "bf16"] = "no",
    compile: bool = False,
    workers: int = 0,
    checkpoint_seconds: float = 120.0,
    progress: Progress | None = None,
    sampling: Sampling | None = None,
    task: Task = CLASSIFICATION,
) -> TrainReport:
    """Train `student` in place; it ends in evaluation mode with the weights that were best on held-out data.

    `teacher` stays as it is. With a `folder`, the run leaves `checkpoint.pt`, `best.safetensors`, `metrics.jsonl`
    and TensorBoard events in it, and `resume` goes on from its checkpoint, or starts where there is none.

    Raises: UsageError for settings that make no sense; RefusalError when the loss is no longer a number.
    """
    training = override(
        training, epochs=epochs, batch_size=batch_size, lr=lr, validation_share=validation_share, max_steps=max_steps
    )
    setup = Setup(
        training,
        seed,
        "none" if task.moves_with_image else choose(augment, data),
        mixed_precision,
        max_steps,
        workers,
        sampling,
    )
    distributed = DistributedDataParallelKwargs()
    with ExitStack() as stack:
        stack.enter_context(preserved_randomness())
        accelerator = stack.enter_context(
            engine(device=device, mixed_precision=mixed_precision, compiled=compile, distributed=distributed)
        )
        stack.callback(_leave_ordinary, student, next(student.parameters()).device)
        run = FineTuning(student, teacher, data, setup, accelerator, distributed, task)
        stack.callback(run.release)
        other = {} if task.name == "classification" else {"task": task.name}
        settings = other | comparable_settings(
            setup, run.views, student, device=accelerator.device, processes=accelerator.num_processes
        )
        told, main = progress or Silent(), accelerator.is_main_process
        recorder = Recorder(folder, settings, main=main, progress=told, every_seconds=checkpoint_seconds)
        stack.callback(recorder.close)
        return run.complete(recorder, resume=resume)


def _leave_ordinary(student: GraphModule, home: torch.device) -> None:
    set_stage(student, weights=True, inputs=True)
    freeze_weights(student, 0)
    use_layout(student, torch.contiguous_format)
    student.zero_grad(set_to_none=True)
    student.to(home).eval()


class FineTuning:
    """One run: what stays the same through it, and its state."""

    def __init__(
        self,
        student: GraphModule,
        teacher: GraphModule | None,
        data: Data,
        setup: Setup,
        accelerator: Accelerator,
        distributed: DistributedDataParallelKwargs,
        task: Task = CLASSIFICATION,
    ) -> None:
        self.task = task
        self.student, self.setup, self.accelerator = student, setup, accelerator
        self.training, self.state = setup.training, State()
        refuse_unfit(student, self.training)
        device, processes = accelerator.device, accelerator.num_processes
        self.views = Views.of(data, self.training.validation_share, seed=setup.seed, device=device)
        batch = whole_batch(self.training.batch_size, len(self.views.train), processes)
        self.batches = EpochBatches(len(self.views.train), batch, seed=setup.seed, sampling=setup.sampling)
        self.per_epoch = self.batches.per_epoch
        self.total = setup.total_steps(self.per_epoch)
        self.spans = stage_spans(self.training, self.total)

        use_layout(student, torch.channels_last)
        self.handles = keep_gradient_layout(student)
        student.to(device)
        set_batch_norm_momentum(student, self.training.batch_norm_momentum)
        bits = self.training.gradient_bits
        optimizer = make_optimizer(student, self.training.optimizer, by_layer=bits is not None)
        evaluations = optimizer.evaluations
        refuse_half(setup, evaluations)
        joint = self.training.teacher == "joint"
        self.objective = Objective(self.training.losses, student, teacher, device=device, joint=joint, task=task)
        self.networks: list[nn.Module] = [student]
        """All that trains."""
        if self.objective.trained is not None:
            self.networks.append(self.objective.trained)
            add_network(optimizer, self.objective.trained, self.training.optimizer)
        if processes > 1:
            few = given_as(next(self.views.batches(1, batch)), lambda x: x[:2])
            distributed.find_unused_parameters = any(
                has_unused_parameters(n, self.spans, few, task) for n in self.networks
            )
        loader = train_loader(self.views.train, data, self.batches, workers=setup.workers)
        share = math.ceil(min(EVALUATION_BATCH, len(self.views.held_out)) / processes)
        held_out = plain_loader(self.views.held_out, data, batch_size=share * processes, seed=setup.seed)
        self.wrapped, self.optimizer, self.loader, self.held_out_loader = accelerator.prepare(
            student, optimizer, loader, held_out
        )
        if self.objective.teacher is not None and joint:
            self.objective.teacher.forward = accelerator.prepare(self.objective.teacher.model)
        self.gradients = None if bits is None else GradientQuantizer(student, bits).to(device)
        self.stages = Stages(
            student, self.optimizer, setup, self.views, spans=self.spans, batch_size=self.batches.batch_size
        )
        self.step = Stepper(
            self.objective,
            self.wrapped,
            self.optimizer,
            accelerator,
            setup,
            spans=self.spans,
            total=self.total,
            networks=self.networks,
            evaluations=evaluations,
            gradients=self.gradients,
        )

    def complete(self, recorder: Recorder, *, resume: bool) -> TrainReport:
        """Train to the end, from the start or from the run's checkpoint."""
        self.recorder = recorder
        found = recorder.resume() if resume else None
        if found is None:
            for sentence in doubts(self.training, self.batches.batch_size):
                recorder.note(sentence)
            self._begin_run()
            recorder.save(self.state, self._parts())
        else:
            self.state, parts = found
            restore_parts(parts, self._stateful(), self.optimizer, self.accelerator.scaler)
            self.stages.enter(self.spans[self.state.stage])
        recorder.start(self.state, total_steps=self.total, per_epoch=self.per_epoch)
        while self.state.step < self.total:
            self._epoch()
        return self._finish()

    def release(self) -> None:
        """Take hooks and the engine's wrapping off the student."""
        self.objective.close()
        if self.gradients is not None:
            self.gradients.close()
        for handle in self.handles:
            handle.remove()
        self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False, keep_torch_compile=False)

    def _parts(self) -> dict[str, Any]:
        """State dicts for a checkpoint; refuses parameters that are not finite, so that the last good one stays."""
        for network in self.networks:
            refuse_bad_parameters(network, step=self.state.step)
        return collect_parts(self._stateful(), self.optimizer, self.accelerator.scaler)

    def _stateful(self) -> list[nn.Module]:
        """What a checkpoint holds the state of."""
        gradients = [] if self.gradients is None else [self.gradients]
        return [*self.networks, *gradients, *self.objective.memories]

    def _begin_run(self) -> None:
        """Fit the binary student to the data, measure it, then begin the first stage."""
        self.stages.start(self.networks)
        self.state.start_accuracy = self._held_out_accuracy()
        self._begin_stage(self.spans[0])
        self.state.signs = weight_signs(self.student)

    def _begin_stage(self, span: Span) -> None:
        is_fitted = self.stages.begin(span, told=self.recorder.note)
        self.state.stage = span.index
        if is_fitted:
            self.recorder.save(self.state, self._parts())  # a fit takes long enough not to be done twice

    def _epoch(self) -> None:
        """The rest of the epoch that the run is in, then its measurements."""
        state = self.state
        epoch, done = divmod(state.step, self.per_epoch)
        if done == 0:
            state.tally, state.epoch_seconds = Tally(), state.seconds
        end = min((epoch + 1) * self.per_epoch, self.total)
        advance_schedules(self.student, epoch * self.per_epoch / self.total)
        self.batches.go_to(epoch, done)
        train_mode(self.student, frozen=self.training.batch_norm_frozen)
        clock = time.monotonic()
        for given, labels in self.loader:
            span = span_at(self.spans, state.step)
            if span.index > state.stage:
                self._begin_stage(span)
                train_mode(self.student, frozen=self.training.batch_norm_frozen)
            x = to_input(self.step.augmented(given, state.step), self.views.data)
            self.step(x, labels, state, first_epoch=epoch == 0)
            state.step += 1
            now = time.monotonic()
            state.seconds, clock = state.seconds + now - clock, now
            self.recorder.step(state)
            if state.step == end:
                break
            if self.recorder.is_due():
                self.recorder.save(state, self._parts())
        self._close_epoch(epoch + 1, clock)

    def _close_epoch(self, epoch: int, clock: float) -> None:
        """Measure the student, keep it if it is the best so far, and write the checkpoint, which comes last."""
        state, span = self.state, self.spans[self.state.stage]
        for network in self.networks:
            share_buffers(network)
        parts = self._parts()
        accuracy = self._held_out_accuracy()
        if span is self.spans[-1] and (not state.best_epoch or self.task.no_worse(accuracy, state.best_accuracy)):
            state.best_epoch, state.best_accuracy = epoch, accuracy
            self.recorder.keep_best(self.student)
        signs = weight_signs(self.student)
        dead = dead_channels(self.student, self.views.monitor_input())
        state.seconds += time.monotonic() - clock
        record = EpochRecord(
            epoch=epoch,
            stage=span.number,
            step=state.step,
            loss=state.tally.mean_loss,
            train_accuracy=state.tally.accuracy,
            held_out_accuracy=accuracy,
            lr=learning_rate(self.training, self.spans, state.step - 1),
            seconds=state.seconds - state.epoch_seconds,
            flip_ratio=flip_ratios(state.signs, signs),
            dead_channels=dead,
        )
        state.signs = signs
        state.history.append(record)
        self.recorder.epoch(state, record)
        self.recorder.save(state, parts)

    def _finish(self) -> TrainReport:
        """Load the best weights, re-estimate batch norm, keep whichever measures better."""
        state = self.state
        best = self.recorder.best()
        self.student.load_state_dict(best)
        set_stage(self.student, weights=True, inputs=True)
        running = self._held_out_accuracy()
        self.stages.reestimate()
        accuracy = self._held_out_accuracy()
        is_kept = self.task.no_worse(accuracy, running)
        if not is_kept:
            self.student.load_state_dict(best)
        self.recorder.keep_best(self.student)
        report = TrainReport(
            epochs=len(state.history),
            steps=state.step,
            best_epoch=state.best_epoch,
            held_out_accuracy=accuracy if is_kept else running,
            start_accuracy=state.start_accuracy,
            samples=len(self.views.train),
            held_out_samples=len(self.views.held_out),
            seconds=state.seconds,
            history=tuple(state.history),
            metric=self.task.metric,
        )
        self.accelerator.wait_for_everyone()
        self.recorder.done(report)
        return report

    def _held_out_accuracy(self) -> float:
        self.student.eval()
        batches = ((to_input(given, self.views.data), labels) for given, labels in self.held_out_loader)
        gather = self.accelerator.gather_for_metrics
        with planes_together(self.student):
            return measure_accuracy(self.student, batches, task=self.task, gather=gather).accuracy
