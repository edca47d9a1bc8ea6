import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnnconvert.train.schedule import learning_rate, span_at, stage_spans
from bnnconvert.values.recipe import Training


def training(**changes: Any) -> Training:
    return Training.model_validate({"optimizer": {"lr": 0.1}} | changes)


@st.composite
def shares(draw: st.DrawFn) -> list[float]:
    parts = draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
    return [part / sum(parts) for part in parts]


@given(shares(), st.integers(1, 500))
def test_stages_cover_the_run_without_gaps_and_the_last_is_never_skipped(parts: list[float], total: int) -> None:
    plan = training(stages=[{"share": share} for share in parts])
    spans = stage_spans(plan, total)
    assert spans[0].first == 0
    assert spans[-1].end == total
    assert spans[-1].number == len(parts)
    assert all(a.end == b.first and a.number < b.number for a, b in pairwise(spans))
    assert [span.index for span in spans] == list(range(len(spans)))
    assert all(span_at(spans, step) is span for span in spans for step in (span.first, span.end - 1))


def test_shares_of_epochs_end_at_whole_epochs() -> None:
    spans = stage_spans(training(stages=[{"share": 0.4}, {"share": 0.6}]), 20 * 371)
    assert [(span.first, span.end) for span in spans] == [(0, 8 * 371), (8 * 371, 20 * 371)]


@given(
    st.sampled_from(["cosine", "linear", "constant"]),
    st.sampled_from(["run", "stage"]),
    st.floats(0, 0.9),
    shares(),
    st.integers(1, 300),
)
def test_learning_rate_is_positive_bounded_rises_then_falls(
    schedule: str, reach: str, warmup: float, parts: list[float], total: int
) -> None:
    stages = [{"share": share} for share in parts]
    plan = training(schedule=schedule, schedule_spans=reach, warmup=warmup, stages=stages)
    spans = stage_spans(plan, total)
    rates = [learning_rate(plan, spans, step) for step in range(total)]
    assert all(0 < rate <= 0.1 for rate in rates)
    assert max(rates) == pytest.approx(0.1)
    for first, end in [(s.first, s.end) for s in spans] if reach == "stage" else [(0, total)]:
        part = rates[first:end]
        top = part.index(max(part))
        assert part[: top + 1] == sorted(part[: top + 1])
        assert part[top:] == sorted(part[top:], reverse=True)


def test_cosine_and_linear_in_closed_form() -> None:
    spans = stage_spans(training(), 100)
    cosine = training(schedule="cosine", warmup=0)
    assert learning_rate(cosine, spans, 25) == pytest.approx(0.1 * (1 + math.cos(math.pi / 4)) / 2)
    linear = training(schedule="linear", warmup=0.1)
    assert learning_rate(linear, spans, 4) == pytest.approx(0.1 * 5 / 11)
    assert learning_rate(linear, spans, 10) == 0.1
    assert learning_rate(linear, spans, 55) == pytest.approx(0.05)


def test_a_stage_may_have_its_own_learning_rate() -> None:
    plan = training(schedule="constant", warmup=0, stages=[{"share": 0.5, "lr": 0.3}, {"share": 0.5}])
    spans = stage_spans(plan, 10)
    assert [learning_rate(plan, spans, step) for step in (4, 5)] == [0.3, 0.1]
