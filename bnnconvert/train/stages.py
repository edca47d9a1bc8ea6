"""The stages of a run: which operands are binary in each, and what is fitted to them where that changes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from bnnconvert.train.batches import derive_seed
from bnnconvert.train.calibrate import calibrate_inputs, reestimate_batch_norm
from bnnconvert.train.engine import share_parameters
from bnnconvert.train.latent import advance_schedules, freeze_weights, set_stage
from bnnconvert.train.layer_wise import fit_batches, fit_weights
from bnnconvert.train.optimizers import enter_stage
from bnnconvert.train.schedule import Span
from bnnconvert.train.scratch import start_anew
from bnnconvert.train.setup import Setup
from bnnconvert.train.views import Views


class Stages:
    """Takes a student and its optimizer from stage to stage."""

    def __init__(
        self,
        student: GraphModule,
        optimizer: Any,
        setup: Setup,
        views: Views,
        *,
        spans: tuple[Span, ...],
        batch_size: int,
    ) -> None:
        self.student, self.optimizer, self.setup, self.views = student, optimizer, setup, views
        self.training, self.spans, self.batch_size = setup.training, spans, batch_size

    def start(self, networks: Sequence[nn.Module]) -> None:
        """Put the student in the form in which it is used, fitted to the data; `networks` are all that trains."""
        set_stage(self.student, weights=True, inputs=True)
        if self.training.start == "scratch":
            member = [] if self.setup.sampling is None else [self.setup.sampling.number]
            torch.manual_seed(derive_seed(self.setup.seed, "start", *member))
            for network in networks:
                start_anew(network)
        advance_schedules(self.student, 0.0)
        torch.manual_seed(derive_seed(self.setup.seed, "calibrate"))
        x = next(self.views.batches(1, self.batch_size))
        calibrate_inputs(self.student, x, frozen=self.training.keeps_statistics)
        self.reestimate()

    def enter(self, span: Span) -> None:
        """Choose a stage's binary operands and its optimizer's settings."""
        set_stage(self.student, weights=span.stage.weights, inputs=span.stage.inputs)
        enter_stage(self.optimizer, self.training.optimizer, span)

    def begin(self, span: Span, *, told: Callable[[str], None]) -> bool:
        """Enter a stage and fit to its operands what depends on them; whether its weights were fitted first."""
        is_fitted = span.stage.fit is not None  # to what batch norm does as it stands
        if is_fitted:
            self._fit_weights(span, told)
        self.enter(span)
        freeze_weights(self.student, span.stage.frozen)
        if span.index and self.training.schedule_spans == "stage":
            # A schedule that begins anew warms up anew, so the optimizer may forget the other stage's gradients.
            self.optimizer.state.clear()
        if not is_fitted and ((span.stage.weights, span.stage.inputs) != (True, True) or span.index):
            self.reestimate()
        return is_fitted

    def reestimate(self) -> None:
        """Re-estimate batch norm, where the recipe asks for it."""
        if self.training.batch_norm_batches == 0:
            return
        batches = self.views.batches(
            self.training.batch_norm_batches, self.batch_size, augmentation=self.setup.augmentation
        )
        reestimate_batch_norm(self.student, batches)

    def _fit_weights(self, span: Span, told: Callable[[str], None]) -> None:
        """Fit weights that are about to become binary to what the network does while they are float."""
        inputs, before = span.stage.inputs, self.spans[span.index - 1].stage if span.index else None
        freeze_weights(self.student, 0)
        set_stage(self.student, weights=False, inputs=inputs)
        if before is None or (before.weights, before.inputs) != (False, inputs):
            self.reestimate()  # batch norm knows other operands
        fit_weights(self.student, fit_batches(self.views, self.batch_size), seed=self.setup.seed, told=told)
        share_parameters(self.student)
