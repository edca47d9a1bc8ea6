"""Stages and learning rate as pure functions of the step, so that a resumed run needs no scheduler state.

A span of n steps with w = round(warmup * n) steps of warm-up:

    warm-up   factor(k) = (k + 1) / (w + 1)                              k < w
    then      t = (k - w) / (n - w);  linear 1 - t,  cosine (1 + cos(pi t)) / 2,  constant 1

The factor is never 0, as a step without a learning rate would only cost time.
"""

import math
from dataclasses import dataclass

from bnnconvert.values.recipe import Stage, Training


@dataclass(frozen=True)
class Span:
    """The steps of one stage, `first` to before `end`; `number` is the stage's in the recipe, from 1."""

    index: int
    number: int
    first: int
    end: int
    stage: Stage


def stage_spans(training: Training, total_steps: int) -> tuple[Span, ...]:
    """Spans of the stages in order. Short runs may skip early stages, never the last one."""
    spans: list[Span] = []
    first, share = 0, 0.0
    for number, stage in enumerate(training.stages, start=1):
        share += stage.share
        is_last = number == len(training.stages)
        # A hair above the product, so that 0.4 of 7420 steps is 2968 whatever the rounding of 0.4.
        end = total_steps if is_last else min(math.floor(share * total_steps + 1e-6), total_steps - 1)
        if end > first:
            spans.append(Span(len(spans), number, first, end, stage))
            first = end
    return tuple(spans)


def span_at(spans: tuple[Span, ...], step: int) -> Span:
    """The span that `step` belongs to; the last one beyond the end."""
    return next((span for span in spans if step < span.end), spans[-1])


def learning_rate(training: Training, spans: tuple[Span, ...], step: int) -> float:
    """Learning rate of one step: the stage's own starting value times the schedule's factor."""
    span = span_at(spans, step)
    first, end = (span.first, span.end) if training.schedule_spans == "stage" else (0, spans[-1].end)
    return peak(training, span.stage) * _factor(training, step - first, end - first)


def peak(training: Training, stage: Stage) -> float:
    """Learning rate that a stage starts from, before the schedule."""
    return training.optimizer.lr if stage.lr is None else stage.lr


def _factor(training: Training, step: int, steps: int) -> float:
    warm_up = min(round(training.warmup * steps), steps - 1)
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    t = (step - warm_up) / (steps - warm_up)
    return {"linear": 1 - t, "cosine": (1 + math.cos(math.pi * t)) / 2, "constant": 1.0}[training.schedule]
