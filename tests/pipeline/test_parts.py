"""Graphs inside code that no file can hold, exported part by part, and put back where they were."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bnnconvert
from bnnconvert import PackedModule
from bnnconvert.errors import RefusalError, UsageError
from tests.networks import randomise


class Backbone(nn.Module):
    """Features on two scales, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.body, self.body_norm = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.down = nn.Conv2d(16, 16, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.body_norm(self.body(self.norm(self.stem(x)).relu())).relu()
        return {"fine": fine, "coarse": self.down(fine)}


class Finder(nn.Module):
    """Looks where the features are largest, as detectors choose their regions."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = Backbone(), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.backbone(x)
        found = []
        for one in features["fine"]:
            place = int(one.sum(0).argmax())
            found.append(self.head(one.flatten(1)[:, place]))
        return found


def finder() -> nn.Module:
    torch.manual_seed(0)
    return randomise(Finder())


def test_a_part_in_the_place_of_the_float_one_gives_what_the_student_gives(tmp_path: Path) -> None:
    net = finder()
    student = bnnconvert.convert(net, "xnor", input_shape=(1, 3, 8, 8))
    with pytest.raises(RefusalError, match=r"--part \(model\.backbone"):
        bnnconvert.export(student, tmp_path / "net.packed.safetensors")
    report = bnnconvert.export(student, tmp_path / "backbone.packed.safetensors", part="model.backbone")
    assert [layer.layer for layer in report.layers] == ["body", "down"]
    assert report.float_bytes > report.tensor_bytes
    net.backbone = PackedModule(tmp_path / "backbone.packed.safetensors")
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        for ours, expected in zip(net(x), student.model.eval()(x), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


class Regions(nn.Module):
    """A head on the regions that code has found, of which there are none."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 16, 3, padding=1)
        self.head = nn.Sequential(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        features = self.backbone(x)
        chosen = [one for one in features if one.mean().item() > 1e9]
        return self.head(torch.stack(chosen) if chosen else features[:0])


def test_a_part_that_nothing_reaches_is_proved_on_random_samples(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = bnnconvert.convert(randomise(Regions()), "xnor", input_shape=(1, 3, 12, 12))
    bnnconvert.export(student, tmp_path / "head.packed.safetensors", part="model.head")
    session, x = bnnconvert.Session(tmp_path / "head.packed.safetensors"), torch.randn(3, 16, 12, 12)
    expected = student.model.eval().get_submodule("model.head")(x).detach()
    torch.testing.assert_close(torch.from_numpy(session.run(x.numpy())), expected, rtol=1e-4, atol=1e-5)


def test_wrong_parts_are_named(tmp_path: Path) -> None:
    student = bnnconvert.convert(finder(), "xnor", input_shape=(1, 3, 8, 8))
    with pytest.raises(UsageError, match=r"unknown part 'backbone'.*model\.backbone"):
        bnnconvert.export(student, tmp_path / "a", part="backbone")
    whole = bnnconvert.convert(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)), "bwn")
    with pytest.raises(UsageError, match="the whole model is one graph"):
        bnnconvert.export(whole, tmp_path / "a", part="0")
    assert not list(tmp_path.iterdir())
