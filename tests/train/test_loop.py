import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch.nn import functional as F

from bnnconvert.errors import UsageError
from bnnconvert.train import clip_latent, evaluate_samples, finetune, stages
from bnnconvert.train.calibrate import prepare
from bnnconvert.train.setup import doubts
from bnnconvert.train.views import Views
from bnnconvert.values.data import Data, Images
from bnnconvert.values.inputs import specs_of
from bnnconvert.values.progress import Silent
from bnnconvert.values.report import EpochRecord, TrainReport
from tests.train.toys import (
    STAGES,
    Stop,
    StopAt,
    make_data,
    make_student,
    make_teacher,
    make_training,
    run,
    same_weights,
)

LABELS_ONLY = {"losses": [{"name": "cross-entropy"}]}


class Watch(Silent):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def start(self, *, total_steps: int, done_steps: int, epochs: int) -> None:
        self.calls.append(("start", (total_steps, done_steps, epochs)))

    def step(self, *, step: int, loss: float, accuracy: float, seconds_left: float) -> None:
        assert loss >= 0
        assert 0 <= accuracy <= 1
        assert seconds_left >= 0
        self.calls.append(("step", step))

    def epoch(self, record: EpochRecord) -> None:
        self.calls.append(("epoch", record.epoch))

    def done(self, report: TrainReport) -> None:
        self.calls.append(("done", report.steps))


def test_a_student_learns_digits_better_than_it_starts() -> None:
    digits = load_digits()
    images = torch.from_numpy(digits.images[:600] * 15).to(torch.uint8)[:, None]
    data = dataclasses.replace(
        make_data(),
        train=Images(images, torch.from_numpy(digits.target[:600])),
        specs=specs_of((1, 1, 8, 8)),
        mean=(0.3,),
        std=(0.35,),
    )
    torch.manual_seed(0)
    student, teacher = make_student(), make_teacher()
    for model in (student, teacher):
        model.stem = torch.nn.Conv2d(1, 6, 3, padding=1)
        model.head = torch.nn.Linear(8, 10)
    training = LABELS_ONLY | {"epochs": 8, "optimizer": {"name": "adam", "lr": 0.02}}
    _, report = run(student=student, teacher=teacher, data=data, training=training)
    assert report.held_out_accuracy > report.start_accuracy + 0.2
    assert report.history[-1].loss < report.history[0].loss


def test_batch_norm_is_reestimated_on_images_as_training_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(stages, "reestimate_batch_norm", lambda _, batches: seen.append(torch.cat(list(batches))))
    data = make_data(samples=40)
    run(data=data, training=LABELS_ONLY | {"epochs": 1, "batch_norm_batches": 2}, augment="crop-flip")
    views = Views.of(data, 0.2, seed=0, device=torch.device("cpu"))
    plain, cropped = (torch.cat(list(views.batches(2, 16, augmentation=choice))) for choice in ("none", "crop-flip"))
    assert len(seen) == 2, "before the first step and at the end"
    assert all(torch.equal(x, cropped) for x in seen)
    assert not torch.equal(plain, cropped)


def test_one_step_is_the_step_that_one_writes_by_hand() -> None:
    """Teacher, loss, optimizer, learning rate, layout and clipping, against plain torch."""
    student = make_student(drop=0.0)
    with torch.no_grad():
        student.get_submodule("conv").weight.mul_(8)  # so that clipping has something to do
    twin, teacher, data = copy.deepcopy(student), make_teacher(), make_data(samples=40)
    training = {"batch_size": 32, "warmup": 0.0, "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.0}}
    run(student=student, teacher=teacher, data=data, training=training, max_steps=1, augment="none")

    views = Views.of(data, 0.2, seed=0, device=torch.device("cpu"))
    (x,) = views.batches(1, 32)
    prepare(twin, [x])
    twin.train()
    with torch.no_grad():
        soft = F.softmax(teacher(x) / 4, dim=1)
    loss = F.kl_div(F.log_softmax(twin(x) / 4, dim=1), soft, reduction="batchmean") * 16
    loss.backward()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter -= 0.05 * parameter.grad
    clip_latent(twin)
    assert twin.get_submodule("conv").weight.abs().max() == 1
    for (name, ours), (_, theirs) in zip(student.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_the_student_ends_as_an_ordinary_module_with_its_best_weights(tmp_path: Path) -> None:
    student, report = run(tmp_path, training=LABELS_ONLY)
    assert not student.training
    assert all(p.grad is None and p.is_contiguous() for p in student.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in student.modules())
    assert "forward" not in vars(student)
    stored = load_file(tmp_path / "best.safetensors")
    assert stored.keys() == student.state_dict().keys()
    assert all(torch.equal(stored[name], value) for name, value in student.state_dict().items())
    data = make_data()
    held_out = Views.of(data, 0.2, seed=0, device=torch.device("cpu")).held_out
    assert evaluate_samples(student, held_out, data).accuracy == report.held_out_accuracy
    assert report.held_out_accuracy >= max(record.held_out_accuracy for record in report.history)
    assert (report.samples, report.held_out_samples, report.steps) == (96, 24, 18)


def test_teacher_and_the_callers_random_numbers_stay_as_they_are() -> None:
    student, teacher = make_student(), make_teacher()
    before = copy.deepcopy(teacher)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(student=student, teacher=teacher, epochs=1)
    assert torch.equal(torch.rand(3), expected)
    assert same_weights(teacher, before)
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())
    assert not teacher.training


def test_the_test_set_is_never_touched() -> None:
    class Forbidden(Images):
        def __getitem__(self, index: int) -> Any:
            raise AssertionError("the test set was read")

        def __getitems__(self, indices: Any) -> Any:
            raise AssertionError("the test set was read")

    data = make_data()
    run(data=dataclasses.replace(data, test=Forbidden(torch.zeros(4, 3, 8, 8), torch.zeros(4))), epochs=1)


def test_the_best_epoch_is_one_of_the_last_stage() -> None:
    _, report = run(training={"stages": STAGES, "epochs": 3})
    assert [record.stage for record in report.history] == [1, 2, 2]
    assert report.best_epoch in (2, 3)


def test_stages_switch_operands_learning_rate_and_decay() -> None:
    student = make_student()
    seen: list[tuple[bool, bool]] = []

    class Look(Silent):
        def step(self, *, step: int, loss: float, accuracy: float, seconds_left: float) -> None:
            layer = student.get_submodule("conv")
            seen.append((layer.weights_are_binary, layer.inputs_are_binary))

    _, report = run(student=student, training={"stages": STAGES, "schedule": "constant"}, progress=Look())
    assert seen == [(False, True)] * 6 + [(True, True)] * 12
    assert [record.lr for record in report.history] == [0.01, 0.02, 0.02]
    assert student.get_submodule("conv").weights_are_binary


def test_metrics_hold_one_line_an_epoch_with_flips_and_dead_channels(tmp_path: Path) -> None:
    run(tmp_path, training={"optimizer": {"lr": 0.05}})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert set(lines[0]["flip_ratio"]) == {"conv", "hidden"}
    assert any(line["flip_ratio"]["conv"] > 0 for line in lines)
    assert lines[0]["dead_channels"]["conv"].keys() == {"channels", "minus", "plus"}


def test_progress_is_told_everything_in_order() -> None:
    watch = Watch()
    run(epochs=2, progress=watch)
    steps = [("step", step) for step in range(1, 13)]
    assert watch.calls == [("start", (12, 0, 2)), *steps[:6], ("epoch", 1), *steps[6:], ("epoch", 2), ("done", 12)]


@pytest.mark.parametrize(
    ("training", "noted"),
    [
        ({"optimizer": {"name": "sgd", "lr": 0.01}, "schedule": "constant"}, 1),
        ({"optimizer": {"name": "sgd", "lr": 0.01}, "schedule": "cosine"}, 0),
        ({"optimizer": {"name": "adam", "lr": 0.01}, "schedule": "constant"}, 0),
    ],
)
def test_descent_at_a_constant_rate_on_small_batches_is_doubted_once(
    tmp_path: Path, training: dict[str, Any], noted: int
) -> None:
    notes: list[str] = []

    class Note(Silent):
        def note(self, message: str) -> None:
            notes.append(message)

    run(tmp_path, training=training, progress=Note(), epochs=1)
    run(tmp_path, training=training, progress=Note(), epochs=1, resume=True)
    assert len(notes) == noted
    assert all(note.startswith("Gradient descent at a constant rate") and "batches of 16;" in note for note in notes)


def test_a_large_batch_is_not_doubted() -> None:
    training = make_training(optimizer={"name": "sgd"}, schedule="constant")
    assert doubts(training, 255)
    assert not doubts(training, 256)


def test_max_steps_shortens_the_run_and_still_measures_it() -> None:
    _, report = run(max_steps=8)
    assert (report.steps, report.epochs) == (8, 2)
    assert report.history[-1].lr < 0.001, "the schedule spans what is really run"


@pytest.mark.parametrize("name", ["epochs", "batch_size", "lr", "max_steps", "validation_share"])
def test_numbers_that_make_no_sense_are_named(name: str) -> None:
    with pytest.raises(UsageError, match=rf"{name} is -1; give a number"):
        run(**{name: -1})


def test_a_learning_rate_from_outside_keeps_the_stages_ratio() -> None:
    training = {"stages": STAGES, "schedule": "constant"}
    _, report = run(training=training, lr=0.001)
    assert [record.lr for record in report.history] == pytest.approx([0.001, 0.002, 0.002])


def test_labels_outside_the_models_outputs_are_refused_by_number() -> None:
    with pytest.raises(UsageError, match=r"label 3, but the model has 3 outputs, so labels must lie in 0\.\.2"):
        run(data=make_data(classes=4))


@pytest.mark.parametrize(
    ("device", "message"), [("tpux", "no such device; use cpu"), ("cuda:99", "not on this machine, which has .* GPUs")]
)
def test_a_device_that_is_not_there_is_named(device: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"--device {device}: {message}"):
        finetune(make_student(), make_teacher(), make_data(), make_training(), device=device)


def test_tensorboard_gets_each_epoch_where_it_is_installed(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with pytest.raises(Stop):
        run(tmp_path, progress=StopAt(14))
    _, report = run(tmp_path, resume=True)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    values = events.Scalars("accuracy/held-out")
    assert [event.step for event in values] == [1, 2, 3]
    expected = [record.held_out_accuracy for record in report.history]
    assert [event.value for event in values] == pytest.approx(expected)
    assert "flip ratio/conv" in events.Tags()["scalars"]


def test_settings_that_fail_leave_the_student_in_order() -> None:
    student = make_student()
    before = copy.deepcopy(student)
    with pytest.raises(UsageError, match="unknown loss"):
        run(student=student, training={"losses": [{"name": "nothing"}]})
    assert same_weights(student, before)
    assert all(p.is_contiguous() for p in student.parameters())


def test_runs_with_other_precision_can_follow_each_other() -> None:
    from accelerate.state import is_initialized

    run(max_steps=1)
    assert not is_initialized()
    run(max_steps=1)


def test_small_data_makes_one_batch() -> None:
    _, report = run(data=make_data(samples=15), training={"batch_size": 128})
    assert report.steps == 3


def test_gradient_clip_bounds_the_step() -> None:
    free, clipped = make_student(), make_student()
    training = {"optimizer": {"name": "sgd", "lr": 1.0, "momentum": 0.0}, "warmup": 0.0}
    start = {name: value.clone() for name, value in free.named_parameters()}
    run(student=free, training=training, max_steps=1)
    run(student=clipped, training=training | {"gradient_clip": 1e-3}, max_steps=1)

    def moved(student: torch.nn.Module) -> float:
        # The shift is set by calibration, which is no step.
        moves = [(p - start[n]).square().sum() for n, p in student.named_parameters() if "shift" not in n]
        return float(torch.stack(moves).sum().sqrt().detach())

    assert moved(clipped) <= 1.01e-3 < moved(free)


def test_data_of_a_factory_goes_in_untouched() -> None:
    def as_is(data: Data) -> Data:
        assert isinstance(data.train, Images)
        floats = Images(data.train.images.float() / 255, data.train.labels)
        return dataclasses.replace(data, train=floats, scale="as-is", mean=(), std=())

    _, report = run(data=as_is(make_data()), epochs=1)
    assert report.steps == 6
