"""A segmentation network through the whole loop, from data of a factory; the run remembers its task."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from bnnconvert.cli.app import app

SOURCE = '''
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    def layer(i, o):
        return nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
    return nn.Sequential(layer(1, 16), layer(16, 16), layer(16, 16), nn.Conv2d(16, 2, 1))

class Scenes(torch.utils.data.Dataset):
    """Bright squares on noise, and where they are."""
    def __init__(self, count):
        draws = torch.Generator().manual_seed(count)
        self.images = torch.randint(0, 120, (count, 1, 12, 12), dtype=torch.uint8, generator=draws)
        self.masks = torch.zeros(count, 12, 12, dtype=torch.int64)
        for image, mask, place in zip(self.images, self.masks, torch.randint(0, 6, (count, 2), generator=draws)):
            y, x = place.tolist()
            image[0, y : y + 6, x : x + 6] += 90
            mask[y : y + 6, x : x + 6] = 1
    def __len__(self):
        return len(self.images)
    def __getitem__(self, i):
        return self.images[i], self.masks[i]

def data():
    return Scenes(192), Scenes(64)

def trained():
    model, (scenes, _) = build(), data()
    x = (scenes.images.float() / 255 - 0.3) / 0.2
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(25):
        for part in torch.arange(len(x)).split(48):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[part]), scenes.masks[part]).backward()
            optimizer.step()
    return model.eval()
'''


def run(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_whole_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "squares_net.py").write_text(SOURCE)
    data = ("--data", "squares_net:data", "--mean", "0.3", "--std", "0.2")
    judged = ("--task", "segmentation", "--json")
    torch.manual_seed(0)
    run("convert", "squares_net:trained", "--recipe", "bireal", "--input-shape", "1,1,12,12", "--out", "net.bnn")
    tuned = json.loads(run("finetune", "net.bnn", *data, *judged, "--epochs", "6", "--device", "cpu"))
    assert tuned["metric"] == "mIoU"
    assert tuned["held_out_accuracy"] > tuned["start_accuracy"]
    assert json.loads((tmp_path / "net.bnn/run.json").read_text())["task"] == "segmentation"
    run("export", "net.bnn", "--packed", "--out", "net.packed.safetensors")
    original = json.loads(run("evaluate", "squares_net:trained", *data, *judged))
    student = json.loads(run("evaluate", "net.bnn", "--json"))
    packed = json.loads(run("evaluate", "net.packed.safetensors", "--data", "squares_net:data", *judged))
    assert original["accuracy"] > student["accuracy"] > 0.6
    assert packed["accuracy"] == pytest.approx(student["accuracy"], abs=1e-3)
    assert packed["metric"] == student["metric"] == "mIoU"
    compared = json.loads(
        run("verify", "net.packed.safetensors", "--against", "net.bnn", "--data", "squares_net:data", "--json")
    )
    assert compared["passed"]
    assert compared["counted"] == "the same class per pixel"
    assert compared["agreement"] > 0.999
    assert "mIoU" in run("evaluate", "net.bnn")
    refused = CliRunner().invoke(app, ["sensitivity", "net.bnn"])
    assert refused.exit_code == 1
    assert "only classifiers" in refused.output
    other = CliRunner().invoke(app, ["finetune", "net.bnn", "--resume", "--task", "multi-label"])
    assert other.exit_code == 2
    assert "task was 'segmentation' and is 'multi-label'" in other.output
    assert json.loads((tmp_path / "net.bnn/run.json").read_text())["task"] == "segmentation"
