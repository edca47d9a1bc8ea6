import dataclasses
import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bnnconvert.errors import ArtifactError, RefusalError, UsageError
from bnnconvert.train.checkpoint import differences
from bnnconvert.values.data import Images, Sample
from bnnconvert.values.progress import Silent
from tests.locks import another_process_in
from tests.rarely import rarely
from tests.train.toys import STAGES, Stop, StopAt, make_data, make_student, run, same_weights

ROOT = Path(__file__).parents[2]


class Drawn(Images):
    """A data set that augments by itself, from each of the usual generators."""

    def __getitem__(self, index: int) -> Sample:
        import random

        import numpy as np

        noise = torch.rand(3, 8, 8) + random.random() + float(np.random.rand())  # noqa: NPY002
        return self.images[index].float() / 255 + 0.1 * noise, int(self.labels[index])


@pytest.mark.parametrize("at", [1, 6, 7, 12, 18, *rarely(5, 11, 13, 17)])
def test_a_run_goes_on_exactly_from_any_step(tmp_path: Path, at: int) -> None:
    training = {"stages": STAGES, "schedule_spans": "stage", "gradient_clip": 1.0}
    whole, report = run(tmp_path / "whole", training=training)
    with pytest.raises(Stop):
        run(tmp_path / "cut", training=training, progress=StopAt(at), checkpoint_seconds=0.0)
    resumed, again = run(tmp_path / "cut", training=training, resume=True)
    assert same_weights(whole, resumed)
    for ours, theirs in zip(report.history, again.history, strict=True):
        assert dataclasses.replace(ours, seconds=0) == dataclasses.replace(theirs, seconds=0)
    lines = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


def test_without_checkpoints_inside_the_epoch_it_goes_on_from_the_epochs_start(tmp_path: Path) -> None:
    whole, _ = run()
    with pytest.raises(Stop):
        run(tmp_path, progress=StopAt(9), checkpoint_seconds=1e9)
    starts: list[int] = []

    class Start(Silent):
        def start(self, *, total_steps: int, done_steps: int, epochs: int) -> None:
            starts.append(done_steps)

    resumed, _ = run(tmp_path, resume=True, progress=Start())
    assert starts == [6]
    assert same_weights(whole, resumed)


def test_a_data_set_that_draws_its_own_numbers_goes_on_exactly(tmp_path: Path) -> None:
    data = make_data()
    assert isinstance(data.train, Images)
    train = Drawn(data.train.images, data.train.labels)
    data = dataclasses.replace(data, train=train, scale="as-is", mean=(), std=())
    whole, _ = run(data=data)
    with pytest.raises(Stop):
        run(tmp_path, data=data, progress=StopAt(8), checkpoint_seconds=0.0)
    resumed, _ = run(tmp_path, data=data, resume=True)
    assert same_weights(whole, resumed)
    other, _ = run(data=data, seed=1)
    assert not same_weights(whole, other)


def test_a_finished_run_resumes_to_the_same_report(tmp_path: Path) -> None:
    student, report = run(tmp_path)
    again, same = run(tmp_path, resume=True)
    assert same_weights(student, again)
    assert report == same


def test_resume_without_a_checkpoint_starts(tmp_path: Path) -> None:
    student, _ = run(tmp_path / "new", resume=True)
    assert same_weights(student, run()[0])


def child(folder: Path, *, stop_after: int) -> None:
    """Run the toys in another process and kill it, without any warning, after some steps."""
    command = [sys.executable, "-m", "tests.train.child", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(stop_after):
            assert process.stdout.readline(), "the run ended before it was killed"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def test_kill_9_at_any_moment_leaves_a_run_that_goes_on_exactly(tmp_path: Path) -> None:
    """Killed mid-epoch, then again after it went on; the moment within a step is up to the machine."""
    (tmp_path / ".checkpoint.pt.0123.tmp").write_bytes(b"half")
    child(tmp_path, stop_after=8)
    child(tmp_path, stop_after=5)
    resumed, report = run(tmp_path, training={"epochs": 40}, resume=True)
    whole, expected = run(training={"epochs": 40})
    assert same_weights(whole, resumed)
    assert [r.loss for r in report.history] == [r.loss for r in expected.history]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 40
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_run_that_another_process_trains_is_left_alone(tmp_path: Path) -> None:
    with (
        another_process_in(tmp_path),
        pytest.raises(UsageError, match="another process is fine-tuning this run; wait for it, or stop it"),
    ):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    run(tmp_path)  # a killed process lets go of it


def test_changed_settings_are_refused_with_what_changed(tmp_path: Path) -> None:
    run(tmp_path, epochs=1)
    with pytest.raises(UsageError, match=r"training\.epochs was 1 and is 3; seed was 0 and is 4; use the checkpoint's"):
        run(tmp_path, resume=True, seed=4)


def test_a_checkpoint_that_is_older_than_a_key_has_its_default(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(tmp_path, progress=StopAt(7))
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    settings = json.loads(content["settings"])
    del settings["training"]["batch_norm_frozen"]
    torch.save(content | {"settings": json.dumps(settings)}, tmp_path / "checkpoint.pt")
    with pytest.raises(UsageError, match=r"training\.batch_norm_frozen was False and is True"):
        run(tmp_path, training={"batch_norm_frozen": True}, resume=True)
    resumed, _ = run(tmp_path, resume=True)
    assert same_weights(resumed, run()[0])


def test_another_environment_is_named_but_not_refused(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(tmp_path, progress=StopAt(7))
    notes: list[str] = []

    class Note(Silent):
        def note(self, message: str) -> None:
            notes.append(message)

    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    settings = json.loads(content["settings"])
    settings["environment"]["torch"] = "1.0"
    torch.save(content | {"settings": json.dumps(settings)}, tmp_path / "checkpoint.pt")
    run(tmp_path, resume=True, progress=Note())
    assert notes == [f"The run goes on, but not bit for bit, as torch was '1.0' and is '{torch.__version__}'."]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04"])
def test_a_damaged_checkpoint_is_an_artifact_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(ArtifactError, match="not a checkpoint"):
        run(tmp_path, resume=True)


def test_a_tensor_file_that_is_no_checkpoint_is_an_artifact_error(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "checkpoint.pt")
    with pytest.raises(ArtifactError, match="not a checkpoint"):
        run(tmp_path, resume=True)


class Poison(Silent):
    """Spoils a weight after a number of steps, as a diverging run would."""

    def __init__(self, student: Any, step: int) -> None:
        self.student, self.at = student, step

    def step(self, *, step: int, loss: float, accuracy: float, seconds_left: float) -> None:
        if step == self.at:
            with torch.no_grad():
                self.student.get_submodule("hidden").bias[0] = torch.nan


@pytest.mark.parametrize(("at", "seconds"), [(8, 1e9), (8, 0.0), (12, 1e9)])
def test_a_loss_that_is_no_number_names_the_layer_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, at: int, seconds: float
) -> None:
    student = make_student()
    with pytest.raises(RefusalError, match=r"'bias' of layer 'hidden' is not finite; lower the learning rate"):
        run(tmp_path, student=student, progress=Poison(student, at), checkpoint_seconds=seconds)
    resumed, _ = run(tmp_path, resume=True)
    assert same_weights(resumed, run()[0])


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    class Fill(Silent):
        def step(self, *, step: int, loss: float, accuracy: float, seconds_left: float) -> None:
            if step == 9:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(UsageError, match="no space left"):
            run(tmp_path, progress=Fill(), checkpoint_seconds=0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.glob(".*.tmp"))
    resumed, _ = run(tmp_path, resume=True)
    assert same_weights(resumed, run()[0])


def test_differences_name_each_leaf() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}) == [
        "a.c was 2 and is 3",
        "d was None and is 4",
    ]
