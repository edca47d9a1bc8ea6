"""Every example runs, on data or settings that are small enough for a test."""

import json
import os
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from typer.testing import CliRunner

import bnnconvert
from bnnconvert import Session
from bnnconvert.cli.app import app
from tests.examples.conftest import EXAMPLES

Example = Callable[[str], ModuleType]


def typed_in_quickstart() -> list[list[str]]:
    """The bnnconvert commands of quickstart.sh with the file that takes their output, as words."""
    lines = (EXAMPLES / "quickstart.sh").read_text().splitlines()
    return [
        line.removeprefix("step ").split() for line in lines if line.removeprefix("step ").startswith("bnnconvert ")
    ]


def test_quickstart_s_steps(
    example: Example, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What quickstart.sh does after installing, with fewer epochs."""
    quickstart = example("quickstart")
    monkeypatch.setattr(quickstart, "EPOCHS", 3)
    quickstart.train()
    names = []
    for _, *words in typed_in_quickstart():
        file = words[words.index(">") + 1] if ">" in words else None
        words = words[: words.index(">")] if file else words
        if words[0] == "finetune":
            words += ["--epochs", "4", "--device", "cpu"]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        if file:
            Path(file).write_text(result.stdout)
        if words[0] == "convert":
            quickstart.converted()
        names.append(words[0])
    shown = [name for name in names if name in ("convert", "finetune", "export")]
    assert shown == ["convert", "finetune", "export"]
    capsys.readouterr()
    quickstart.table()
    printed = capsys.readouterr().out
    for stage in ("float", "converted", "fine-tuned", "packed"):
        assert stage in printed
    assert "0 differences are unexplained" in printed
    accuracy = {stage: json.loads(Path(f"{stage}.json").read_text())["accuracy"] for stage in ("float", "packed")}
    assert accuracy["float"] > 0.9
    assert accuracy["packed"] > accuracy["float"] - 0.1


def test_a_transformer_runs_in_the_engine(example: Example, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = example("vit").VisionTransformer(depth=2, width=64, heads=4, classes=10)
    student = bnnconvert.convert(net, "xnor", input_shape=(1, 3, 224, 224))
    bnnconvert.export(student, tmp_path / "vit.packed.safetensors")
    session = Session(tmp_path / "vit.packed.safetensors", threads=1)
    if session.isa is None:
        pytest.skip("installed without the native engine")
    outside = {session.program.nodes[number].op for number in session.executor.reasons}
    assert not outside


def test_own_loop(example: Example, tmp_path: Path) -> None:
    accuracies = example("own_loop").main(teacher_epochs=2, epochs=2, folder=tmp_path)
    assert accuracies["student"] == accuracies["packed"] > 0.8
    assert (tmp_path / "own_loop.packed.safetensors").exists()


def test_segmentation(example: Example, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    segmentation = example("segmentation")
    monkeypatch.setattr(segmentation, "SCENES", {"train": 640, "test": 64})
    found = segmentation.main(recipe="bireal", epochs=5, folder=tmp_path)
    assert found["student"] == pytest.approx(found["packed"], abs=1e-3)
    assert found["float"] > 1 / 11
    assert found["file bytes"] < found["float bytes"]


def test_detection(example: Example, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    detection = example("detection")
    monkeypatch.setattr(detection, "SCENES", {"train": 640, "test": 64})
    found = detection.main(recipe="bwn", epochs=4, folder=tmp_path)
    assert found["student"] == pytest.approx(found["packed"], abs=1e-3)
    assert found["float"] > 0.2
    assert found["student"] > 0.2
    assert found["file bytes"] < found["float bytes"] / 8


def test_step_time_prints_every_ratio(example: Example, capsys: pytest.CaptureFixture[str]) -> None:
    step_time = example("step_time")
    step_time.main(["--recipes", "xnor", "--batch", "2", "--threads", "1", "--rounds", "2", "--json"])
    found = json.loads(capsys.readouterr().out)["xnor"]
    assert found["with_teacher"] > 0
    assert found["ratio"] == pytest.approx(found["with_teacher"] / found["original"])
    step_time.main(["--recipes", "xnor", "--batch", "2", "--threads", "1", "--rounds", "2"])
    assert "| `xnor` |" in capsys.readouterr().out


def test_engine_speed_holds_each_layer_against_the_bound(
    example: Example, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine_speed = example("engine_speed")
    monkeypatch.setattr(engine_speed, "LAYERS", ((32, 6), (64, 4)))
    engine_speed.main(["--rounds", "2", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["bound"] > 0
    assert [layer["layer"] for layer in found["layers"]] == ["32 at 6x6", "64 at 4x4"]
    assert all(layer["us"] > 0 and layer["tile"] for layer in found["layers"])


@pytest.mark.parametrize("recipe", ["xnor", "bwn"])
def test_linear_speed_beside_torch(
    example: Example, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: str
) -> None:
    linear_speed = example("linear_speed")
    monkeypatch.setattr(linear_speed, "SHAPES", ((3, 65, 32), (1, 128, 40)))
    linear_speed.main(["--recipe", recipe, "--rounds", "2", "--json"])
    first, second = json.loads(capsys.readouterr().out)
    assert first["shape"] == [3, 65, 32]
    assert second["us"]["ours"] > 0
    assert second["us"]["torch fp32"] > 0


def test_resnet18_speed_has_a_row_per_artifact(
    example: Example, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    resnet18_speed = example("resnet18_speed")
    monkeypatch.setattr(resnet18_speed, "SHAPE", (3, 32, 32))
    monkeypatch.setattr(resnet18_speed, "VARIANTS", resnet18_speed.VARIANTS[:2])
    resnet18_speed.main(["--rounds", "2", "--peers", "torch", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["rows"]] == ["bireal, float ends", "bireal, int8 ends"]
    assert all(row["seconds"] > 0 and "torch" in row["peers"] for row in found["rows"])
    parts = {"binary 3x3 layers", "7x7 stem and max pool", "input, classifier, output"}
    assert all(set(row["parts"]) - {"shortcuts: average pools, 1x1 convolutions"} == parts for row in found["rows"])
    assert found["opening"] > 0


def test_constraint_is_in_the_range_of_the_package() -> None:
    project = tomllib.loads((EXAMPLES.parent / "pyproject.toml").read_text())["project"]
    pinned = next(line for line in (EXAMPLES / "constraints.txt").read_text().splitlines() if line.startswith("torch"))
    least = next(line for line in project["dependencies"] if line.startswith("torch>")).removeprefix("torch>=")
    assert pinned.startswith("torch==")
    assert tuple(map(int, pinned.removeprefix("torch==").split("."))) >= tuple(map(int, least.split(".")))


@pytest.mark.slow
def test_quickstart_twice_from_another_folder(tmp_path: Path) -> None:
    """The README's first command, installing included."""
    environment = os.environ | {"BNNCONVERT_VENV": str(tmp_path / "venv")}
    for _ in range(2):
        done = subprocess.run(
            ["bash", str(EXAMPLES / "quickstart.sh")],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "0 differences are unexplained" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["venv"]
