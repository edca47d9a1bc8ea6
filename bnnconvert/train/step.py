"""One training step: augment, evaluate, step as often as the optimizer needs, put latent weights in order.

Every random number comes from (seed, step), so that a step is the same whatever came before.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from bnnconvert.train.augment import Given, augmented
from bnnconvert.train.batches import derive_seed, generator_for
from bnnconvert.train.checkpoint import State
from bnnconvert.train.diagnose import refuse_not_finite
from bnnconvert.train.engine import share_buffers, sums
from bnnconvert.train.gradients import GradientQuantizer
from bnnconvert.train.latent import clip_latent
from bnnconvert.train.objective import BatchLoss, Objective
from bnnconvert.train.optimizers import set_learning_rate
from bnnconvert.train.schedule import Span, learning_rate
from bnnconvert.train.setup import Setup
from bnnconvert.values.inputs import Example


class Stepper:
    """Takes the steps of a run. `networks` are the student and, if it trains, its teacher."""

    def __init__(
        self,
        objective: Objective,
        forward: Callable[..., Any],
        optimizer: Any,
        accelerator: Accelerator,
        setup: Setup,
        *,
        spans: tuple[Span, ...],
        total: int,
        networks: list[nn.Module],
        evaluations: int,
        gradients: GradientQuantizer | None,
    ) -> None:
        self.objective, self.forward, self.optimizer = objective, forward, optimizer
        self.accelerator, self.setup, self.training = accelerator, setup, setup.training
        self.spans, self.total, self.networks, self.evaluations = spans, total, networks, evaluations
        self.gradients = gradients

    def augmented(self, given: Given, step: int) -> Given:
        """What is given to one step, images cropped and flipped at random. Shapes: those of `given`."""
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        draws = generator_for(self.setup.seed, "augment", step)
        return augmented(given, self.setup.augmentation, draws, rank=rank, ranks=ranks)

    def __call__(self, x: Example, labels: Tensor, state: State, *, first_epoch: bool) -> None:
        """Train on one batch and count it.

        Raises: RefusalError where the loss is not finite.
        """
        factors = None
        if self.gradients is not None:
            self.gradients.begin_step(state.step)
        for evaluation in range(self.evaluations):
            made, totals = self._evaluate(x, labels, state.step, check=first_epoch)
            if evaluation == 0:
                state.tally.add(*totals)
            self.accelerator.backward(made.loss)
            self._clip_gradients()
            if self.gradients is not None:
                if self.gradients.searching:
                    share_buffers(self.gradients)  # each process has searched in its own part of the batch
                factors = self.gradients.rates()
            set_learning_rate(self.optimizer, learning_rate(self.training, self.spans, state.step), factors)
            self.optimizer.step()
            self.optimizer.zero_grad()
        clip_latent(self.networks[0])

    def _evaluate(self, x: Example, labels: Tensor, step: int, *, check: bool) -> tuple[BatchLoss, list[float]]:
        """Loss of the batch; loss, hits and samples summed over all processes."""
        self._seed(step)
        with self.accelerator.autocast():
            made = self.objective(self.forward, x, labels, progress=step / self.total, check=check)
        count = torch.tensor(len(labels), device=labels.device)
        correct = self.objective.task.quick_scores(made.logits.detach().float(), labels).sum()
        totals = sums(self.accelerator, [made.loss * count, correct, count])
        if not math.isfinite(totals[0]):
            self._seed(step)
            loss = float(made.loss.detach())
            refuse_not_finite(self.networks[0], x, loss=loss, step=step, teacher_logits=made.teacher_logits)
        return made, totals

    def _seed(self, step: int) -> None:
        torch.manual_seed(derive_seed(self.setup.seed, "step", step, self.accelerator.process_index))

    def _clip_gradients(self) -> None:
        """Bound the norm of each network's gradient by itself."""
        if self.training.gradient_clip is not None:
            self.accelerator.unscale_gradients()
            for network in self.networks:
                nn.utils.clip_grad_norm_(network.parameters(), self.training.gradient_clip)
