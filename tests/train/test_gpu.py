"""Training on a GPU, where there is one: the run is that on the CPU up to rounding, and goes on from a checkpoint."""

from pathlib import Path

import pytest
import torch

from tests.train.toys import Stop, StopAt, make_data, make_student, run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def test_a_run_on_a_gpu_is_that_on_the_cpu_up_to_rounding() -> None:
    reports = {device: run(student=make_student(drop=0.0), device=device)[1] for device in ("cpu", "cuda")}
    assert reports["cuda"].steps == reports["cpu"].steps
    on_cpu, on_gpu = (reports[device].history[0].loss for device in ("cpu", "cuda"))
    assert on_gpu == pytest.approx(on_cpu, rel=0.05)


def test_the_student_comes_back_to_where_it_was() -> None:
    student, _ = run(student=make_student(), device="cuda")
    assert {parameter.device.type for parameter in student.parameters()} == {"cpu"}


def test_a_run_stopped_on_a_gpu_goes_on_there(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(tmp_path, device="cuda", progress=StopAt(14))
    _, resumed = run(tmp_path, device="cuda", resume=True)
    _, whole = run(device="cuda")
    assert resumed.steps == whole.steps
    assert resumed.history[-1].loss == pytest.approx(whole.history[-1].loss, rel=1e-3)


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_a_student_learns_in_each_precision(mixed_precision: str) -> None:
    _, report = run(data=make_data(), device="cuda", mixed_precision=mixed_precision)
    assert report.held_out_accuracy > report.start_accuracy
