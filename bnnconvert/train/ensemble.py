"""Fine-tune an ensemble: its members one after another, each in a run of its own, then their vote.

What a member is trained on is a function of the seed and of the members before it, and so is its vote. So an ensemble
goes on exactly where it was stopped: finished members are taken from their runs, which is quick, and the next goes on.
"""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.fx import GraphModule

from bnnconvert.errors import UsageError
from bnnconvert.graph import VOTE, members_of
from bnnconvert.layers.vote import Vote
from bnnconvert.tasks import CLASSIFICATION, Task
from bnnconvert.train.batches import Sampling, plain_loader, to_input
from bnnconvert.train.boosting import boosted, uniform, weighted_error
from bnnconvert.train.checkpoint import portable_state
from bnnconvert.train.loop import EVALUATION_BATCH, finetune
from bnnconvert.train.metrics import evaluate_samples
from bnnconvert.train.setup import override
from bnnconvert.train.views import Views
from bnnconvert.values.data import Data
from bnnconvert.values.files import write_bytes, write_text
from bnnconvert.values.progress import Progress, Silent
from bnnconvert.values.recipe import Ensemble, Training
from bnnconvert.values.report import EpochRecord, TrainReport
from bnnconvert.values.run import MEMBERS


def finetune_ensemble(
    ensemble: GraphModule,
    teacher: GraphModule | None,
    data: Data,
    training: Training,
    *,
    folder: Path | None = None,
    device: str | None = None,
    seed: int = 0,
    resume: bool = False,
    validation_share: float | None = None,
    progress: Progress | None = None,
    task: Task = CLASSIFICATION,
    **options: Any,
) -> TrainReport:
    """Train the members of `ensemble` in place and set their votes; options are those of `finetune`, for each member.

    With a `folder`, each member leaves a run in `members/N/` of it; `best.safetensors` is the ensemble's, written last.

    Raises: UsageError for settings that make no sense; RefusalError when a loss is no longer a number.
    """
    if task.name != "classification":
        raise UsageError(f"Ensembles vote on classes, and the task is {task.name}; choose another recipe.")
    settings, members = training.ensemble or Ensemble(), members_of(ensemble)
    main = int(os.environ.get("RANK", "0")) == 0
    told = progress if progress is not None and main else Silent()
    joined = _Joined(told, members=len(members))
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    share = override(training, validation_share=validation_share).validation_share
    views = Views.of(data, share, seed=seed, device=where)
    weights, votes, reports = uniform(len(views.train)), list[float](), list[TrainReport]()
    for number, member in enumerate(members, start=1):
        own = training
        if settings.start == "previous" and number > 1:
            member.load_state_dict(members[number - 2].state_dict())
            own = training.model_copy(update={"start": "teacher"})  # from scratch is then the first one only
        joined.begin(number, reports)
        report = finetune(
            member,
            teacher,
            data,
            own,
            folder=None if folder is None else folder / MEMBERS / str(number),
            device=device,
            seed=seed,
            resume=resume,
            validation_share=validation_share,
            progress=joined,
            sampling=Sampling(weights, once=settings.scheme == "bagging", number=number),
            **options,
        )
        wrong, classes = _wrong(member, views)
        error = weighted_error(weights, wrong)
        vote, weights = boosted(settings, weights, wrong, classes=classes)
        votes.append(vote)
        reports.append(_shifted(report, reports))
        told.note(f"Member {number} of {len(members)}: weighted training error {error:.4f}, vote {vote:.4f}.")
    vote_of = ensemble.get_submodule(VOTE)
    assert isinstance(vote_of, Vote)
    vote_of.set_weights(votes)
    ensemble.eval()
    accuracy = _held_out_accuracy(ensemble, views)
    total = _together(reports, accuracy)
    if folder is not None and main:
        write_text(folder / "metrics.jsonl", "".join(json.dumps(asdict(record)) + "\n" for record in total.history))
        write_bytes(folder / "best.safetensors", save(portable_state(ensemble)))
    told.done(total)
    return total


@torch.no_grad()
def _wrong(member: nn.Module, views: Views) -> tuple[Tensor, int]:
    """Which training samples a member gets wrong, as they are, and the number of classes."""
    home = next(member.parameters()).device
    member.to(views.device).eval()
    misses, classes = [], 0
    for images, labels in plain_loader(views.train, views.data, batch_size=EVALUATION_BATCH, seed=views.seed):
        logits = CLASSIFICATION.output(member(to_input(images, views.data, views.device)))
        misses.append(logits.argmax(dim=1).cpu() != labels.cpu())
        classes = logits.shape[1]
    member.to(home)
    return torch.cat(misses), classes


def _held_out_accuracy(ensemble: nn.Module, views: Views) -> float:
    home = next(ensemble.parameters()).device
    ensemble.to(views.device)
    accuracy = evaluate_samples(ensemble, views.held_out, views.data, device=views.device).accuracy
    ensemble.to(home)
    return accuracy


def _shifted(report: TrainReport, before: list[TrainReport]) -> TrainReport:
    """A member's report with its epochs and steps counted on from those of the members before it."""
    epochs, steps = sum(r.epochs for r in before), sum(r.steps for r in before)
    history = tuple(replace(e, epoch=e.epoch + epochs, step=e.step + steps) for e in report.history)
    return replace(report, history=history, best_epoch=report.best_epoch + epochs)


def _together(reports: list[TrainReport], accuracy: float) -> TrainReport:
    """The report of the ensemble."""
    return replace(
        reports[0],
        epochs=sum(r.epochs for r in reports),
        steps=sum(r.steps for r in reports),
        best_epoch=reports[-1].best_epoch,
        held_out_accuracy=accuracy,
        seconds=sum(r.seconds for r in reports),
        history=tuple(record for r in reports for record in r.history),
        members=len(reports),
    )


class _Joined:
    """Tells of the members' runs as of one."""

    def __init__(self, progress: Progress, *, members: int) -> None:
        self.progress, self.members = progress, members
        self.is_told = False
        self.begin(1, [])

    def begin(self, number: int, before: list[TrainReport]) -> None:
        """The next run is that of this member."""
        self.number, self.own_steps = number, 0
        self.epochs, self.steps = sum(r.epochs for r in before), sum(r.steps for r in before)

    def start(self, *, total_steps: int, done_steps: int, epochs: int) -> None:
        self.own_steps = total_steps
        if not self.is_told:
            self.is_told = True
            total, done = self.members * total_steps, self.steps + done_steps
            self.progress.start(total_steps=total, done_steps=done, epochs=self.members * epochs)

    def step(self, *, step: int, loss: float, accuracy: float, seconds_left: float) -> None:
        later = (self.members - self.number) * self.own_steps
        left = seconds_left * (1 + later / max(self.own_steps - step, 1))
        self.progress.step(step=self.steps + step, loss=loss, accuracy=accuracy, seconds_left=left)

    def epoch(self, record: EpochRecord) -> None:
        self.progress.epoch(replace(record, epoch=record.epoch + self.epochs, step=record.step + self.steps))

    def note(self, message: str) -> None:
        self.progress.note(f"Member {self.number}: {message}")

    def done(self, report: TrainReport) -> None:
        pass  # the ensemble tells of all members at the end
