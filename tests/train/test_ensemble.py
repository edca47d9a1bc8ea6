"""Ensembles: draws by weight, the boosting schemes in closed form, members that differ, and exact resumption."""

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

import bnnconvert
from bnnconvert.graph import members_of
from bnnconvert.pipeline import convert_model, open_run
from bnnconvert.rewrite.ensemble import Ensemble as EnsembleRewrite
from bnnconvert.shapes import propagate_shapes
from bnnconvert.train.batches import EpochBatches, Sampling
from bnnconvert.train.boosting import boosted, uniform, weighted_error
from bnnconvert.train.ensemble import finetune_ensemble
from bnnconvert.values.inputs import specs_of
from bnnconvert.values.plan import Plan
from bnnconvert.values.progress import Silent
from bnnconvert.values.recipe import Ensemble
from bnnconvert.values.report import EpochRecord, TrainReport
from tests.rarely import rarely
from tests.train.toys import Stop, StopAt, make_data, make_student, make_teacher, make_training, same_weights

RIGHT_BUT_ONE = torch.tensor([True, False, False, False, False])


def order(sampling: Sampling, *, seed: int = 0, epoch: int = 0) -> list[int]:
    batches = EpochBatches(len(sampling.weights), len(sampling.weights), seed=seed, sampling=sampling)
    batches.go_to(epoch)
    return [index for batch in batches for _, index in batch]


def test_a_bootstrap_sample_is_one_for_the_run_in_another_order_each_epoch() -> None:
    sampling = Sampling(uniform(200), once=True, number=1)
    first, second = order(sampling), order(sampling, epoch=1)
    assert Counter(first) == Counter(second)
    assert first != second
    assert 0.55 < len(set(first)) / 200 < 0.72  # 1 - 1/e
    assert Counter(order(dataclasses.replace(sampling, number=2))) != Counter(first)
    assert Counter(order(sampling, seed=1)) != Counter(first)
    assert order(sampling) == first


def test_boosting_draws_anew_in_each_epoch_by_weight() -> None:
    weights = torch.tensor([0.0, 1.0, 3.0]).repeat(500)
    sampling = Sampling(weights, once=False)
    drawn = Counter(index % 3 for epoch in range(4) for index in order(sampling, epoch=epoch))
    assert drawn[0] == 0
    assert drawn[2] / drawn[1] == pytest.approx(3, rel=0.15)
    assert Counter(order(sampling)) != Counter(order(sampling, epoch=1))


def test_draws_go_on_from_any_batch() -> None:
    batches = EpochBatches(60, 7, seed=0, sampling=Sampling(uniform(60), once=False))
    batches.go_to(2)
    whole = list(batches)
    batches.go_to(2, 3)
    assert list(batches) == whole[3:]


def after(scheme: str, wrong: Tensor = RIGHT_BUT_ONE, weights: Tensor | None = None) -> tuple[float, Tensor]:
    given = uniform(len(wrong)) if weights is None else weights
    return boosted(Ensemble(scheme=scheme), given, wrong, classes=10)  # type: ignore[arg-type]


def test_scheme_a_of_the_notes() -> None:
    alpha, weights = after("boosting-a")  # an error of 1/5
    assert alpha == pytest.approx(math.log(2))
    torch.testing.assert_close(weights * 5, torch.tensor([2, 0.5, 0.5, 0.5, 0.5], dtype=torch.float64))


def test_scheme_b_moves_the_odds_of_a_sample() -> None:
    alpha, weights = after("boosting-b")
    assert alpha == pytest.approx(math.log(2))
    odds = weights / (1 - weights)
    torch.testing.assert_close(odds / (0.2 / 0.8), torch.tensor([2, 0.5, 0.5, 0.5, 0.5], dtype=torch.float64))


def test_scheme_c_keeps_the_sum_of_what_is_left() -> None:
    alpha, weights = after("boosting-c")
    assert alpha == pytest.approx(math.log(2))
    assert float((1 - weights).sum()) == pytest.approx(5 / 10)
    assert float((1 - weights[1]) / (1 - weights[0])) == pytest.approx(4)


def test_scheme_d_is_for_many_classes() -> None:
    alpha, weights = after("boosting-d")
    assert alpha == pytest.approx((math.log(4) + math.log(9)) / 10)
    assert float(weights[0] / weights[1]) == pytest.approx(math.exp(2 * alpha))


def test_bagging_leaves_weights_and_votes_alone() -> None:
    alpha, weights = after("bagging")
    assert alpha == 1.0
    assert torch.equal(weights, uniform(5))


@pytest.mark.parametrize("scheme", ["boosting-a", "boosting-b", "boosting-c", "boosting-d"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_weights_stay_fit_for_drawing_whatever_the_error(scheme: str, share: float) -> None:
    wrong = torch.arange(100) < 100 * share
    alpha, weights = after(scheme, wrong)
    for _ in range(30):
        alpha, weights = after(scheme, wrong, weights)
        assert alpha >= 0
        assert bool((weights >= 0).all())
        assert weights.sum() > 0
        assert bool(torch.isfinite(weights).all())


def test_the_error_is_by_weight() -> None:
    weights = torch.tensor([3.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    assert weighted_error(weights, torch.tensor([True, False, False, False])) == pytest.approx(0.5)


def make_ensemble(members: int = 2) -> GraphModule:
    graph = make_student(drop=0.0)
    propagate_shapes(graph, torch.zeros(2, 3, 8, 8))
    rewrite, plan = EnsembleRewrite(members=members), Plan(recipe="test", inputs=specs_of((1, 3, 8, 8)), layers=())
    (site,) = rewrite.find(graph, plan)
    rewrite.apply(graph, site)  # type: ignore[arg-type]
    graph.recompile()
    return graph


def run(folder: Path | None = None, **changes: Any) -> tuple[GraphModule, TrainReport]:
    ensemble = make_ensemble()
    training = make_training(epochs=2, ensemble=changes.pop("settings", {}), **changes.pop("training", {}))
    report = finetune_ensemble(
        ensemble, make_teacher(), make_data(), training, folder=folder, device="cpu", checkpoint_seconds=0.0, **changes
    )
    return ensemble, report


@pytest.mark.parametrize("scheme", ["bagging", "boosting-c"])
def test_members_come_to_differ_and_their_votes_add_up(scheme: str) -> None:
    ensemble, report = run(settings={"scheme": scheme})
    one, two = members_of(ensemble)
    assert not same_weights(one, two)
    assert sum(float(w) for w in ensemble.get_submodule("vote").buffers()) == pytest.approx(1)
    assert report.members == 2
    assert report.epochs == len(report.history) == 4
    assert [record.epoch for record in report.history] == [1, 2, 3, 4]
    assert report.steps == report.history[-1].step == 24
    assert 0 <= report.held_out_accuracy <= 1
    assert not any(module.training for module in ensemble.modules())


@pytest.mark.parametrize("at", [12, *rarely(3, 20)])
def test_an_ensemble_goes_on_exactly_where_it_was_stopped(tmp_path: Path, at: int) -> None:
    settings = {"scheme": "boosting-a", "start": "previous"}
    whole, report = run(tmp_path / "whole", settings=settings)
    with pytest.raises(Stop):
        run(tmp_path / "cut", settings=settings, progress=StopAt(at))
    assert not (tmp_path / "cut" / "best.safetensors").exists()
    resumed, again = run(tmp_path / "cut", settings=settings, resume=True)
    assert same_weights(whole, resumed)
    for ours, theirs in zip(report.history, again.history, strict=True):
        assert dataclasses.replace(ours, seconds=0) == dataclasses.replace(theirs, seconds=0)
    lines = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]


def test_a_member_may_start_from_the_one_before() -> None:
    converted, _ = run(settings={"start": "converted"})
    previous, _ = run(settings={"start": "previous"})
    assert same_weights(members_of(converted)[0], members_of(previous)[0])
    assert not same_weights(members_of(converted)[1], members_of(previous)[1])


def test_members_from_scratch_begin_apart_and_a_later_one_may_go_on_from_the_one_before() -> None:
    still = {"start": "scratch", "optimizer": {"lr": 1e-9}, "batch_norm_batches": 0}
    for start in ("converted", "previous"):
        ensemble, _ = run(settings={"start": start}, training=still)
        one, two = (member.get_submodule("conv").weight for member in members_of(ensemble))
        near = bool(torch.allclose(one, two, atol=1e-5))
        assert near == (start == "previous")


def test_the_members_runs_are_told_as_one(tmp_path: Path) -> None:
    class Told(Silent):
        def __init__(self) -> None:
            self.starts: list[tuple[int, int, int]] = []
            self.steps: list[int] = []
            self.epochs: list[int] = []
            self.notes: list[str] = []
            self.reports: list[TrainReport] = []

        def start(self, *, total_steps: int, done_steps: int, epochs: int) -> None:
            self.starts.append((total_steps, done_steps, epochs))

        def step(self, *, step: int, loss: float, accuracy: float, seconds_left: float) -> None:
            assert seconds_left >= 0
            self.steps.append(step)

        def epoch(self, record: EpochRecord) -> None:
            self.epochs.append(record.epoch)

        def note(self, message: str) -> None:
            self.notes.append(message)

        def done(self, report: TrainReport) -> None:
            self.reports.append(report)

    told = Told()
    _, report = run(progress=told)
    assert told.starts == [(24, 0, 4)]
    assert told.steps == list(range(1, 25))
    assert told.epochs == [1, 2, 3, 4]
    assert [note.split(":")[0] for note in told.notes] == ["Member 1 of 2", "Member 2 of 2"]
    assert told.reports == [report]


def test_a_run_directory_holds_the_members_and_then_the_ensemble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = convert_model("tests.networks:Residual", "benn", input_shape=(1, 3, 8, 8))
    assert made.run is not None
    bnnconvert.finetune(made, make_data(), epochs=1, max_steps=2, batch_size=16)
    assert made.run.has_checkpoint
    assert sorted(path.name for path in made.run.file("members").iterdir()) == ["1", "2", "3"]
    opened = open_run()
    assert same_weights(opened.model, made.model)
    with pytest.raises(bnnconvert.errors.UsageError, match="--resume"):
        bnnconvert.finetune(open_run(), make_data(), epochs=1, max_steps=2, batch_size=16)
    again = open_run()
    bnnconvert.finetune(again, make_data(), epochs=1, max_steps=2, batch_size=16, resume=True)
    assert same_weights(again.model, made.model)
    anew = open_run()
    bnnconvert.finetune(anew, make_data(), epochs=1, max_steps=1, batch_size=16, restart=True)
    assert not same_weights(anew.model, made.model)
