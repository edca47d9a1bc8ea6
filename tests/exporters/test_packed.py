"""Export: sizes as predicted, the file proven against the student, and nothing left behind when that fails."""

import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from bnnconvert.artifact.schema import Metadata
from bnnconvert.errors import RefusalError, UsageError, VerificationError
from bnnconvert.exporters.draft import module_bytes
from bnnconvert.exporters.packed import export_deployed, export_packed
from bnnconvert.lower.deploy import deploy, deploy_bytes
from bnnconvert.runtime import Session
from tests.students import INPUTS, WEIGHTS, Block, conv, linear, trace


@pytest.fixture
def x():
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def student():
    torch.manual_seed(0)
    return trace(Block())


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_kind_of_plane_is_exported_and_proven(inputs, weights, x, tmp_path):
    torch.manual_seed(0)
    student = trace(Block(inputs=inputs, weights=weights, pad="one" if weights == "sign" else "zero"))
    path = tmp_path / "net.packed.safetensors"
    report = export_packed(student, path, golden_input=x, teacher=student)
    assert report.golden_difference < 1e-5
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(Session(path).run(x.numpy())), student(x))


def test_sizes(student, x, tmp_path):
    path = tmp_path / "net.packed.safetensors"
    report = export_packed(student, path, golden_input=x, teacher=student)
    assert report.predicted_bytes == report.tensor_bytes == deploy_bytes(student, x)
    assert report.golden_bytes == x.nbytes + 4 * 5 * 4
    assert report.file_bytes == path.stat().st_size == report.tensor_bytes + report.golden_bytes + report.header_bytes
    assert report.float_bytes == module_bytes(student) > report.tensor_bytes
    for layer in report.layers:
        rows = student.get_submodule(layer.layer).weight.shape[0]
        assert layer.binary_weights <= 8 * layer.weight_bytes <= layer.binary_weights + 7 * rows
    assert [(layer.layer, layer.binary_weights) for layer in report.layers] == [
        ("conv1", 864),
        ("conv2", 864),
        ("fc1", 512),
    ]


def test_same_student_same_file(student, x, tmp_path):
    for name in ("a", "b"):
        export_packed(student, tmp_path / name, golden_input=x, metadata=Metadata(recipe="r"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_student_is_not_touched(student, x, tmp_path):
    student.train()
    student.get_submodule("bn1").eval()
    modes = {name: m.training for name, m in student.named_modules()}
    state = {name: t.clone() for name, t in student.state_dict().items()}
    export_packed(student, tmp_path / "net", golden_input=x)
    assert {name: m.training for name, m in student.named_modules()} == modes
    assert all(torch.equal(t, state[name]) for name, t in student.state_dict().items())


def break_threshold(deployed):
    deployed.get_submodule("conv2.thresholds").thresholds += 8


def break_start(deployed):
    start = deployed.get_submodule("conv2.thresholds").start
    start ^= True


def break_weight(deployed):
    weight = deployed.get_submodule("conv1.dot").weight
    weight[0, 0] ^= 255


def break_scale(deployed):
    deployed.get_submodule("fc1.affine").scale *= 1.5


def break_norm(deployed):
    norm = deployed.get_submodule("bn0")  # whose tensors are the student's, too
    norm.bias = nn.Parameter(norm.bias + 0.1)


@pytest.mark.parametrize("damage", [break_threshold, break_start, break_weight, break_scale, break_norm])
def test_a_deployed_graph_that_is_not_the_student_is_not_written(student, x, tmp_path, damage):
    deployed = deploy(student, x)
    damage(deployed)
    with pytest.raises(VerificationError, match=r"net.*differs from its student"):
        export_deployed(deployed, student, tmp_path / "net", golden_input=x)
    assert list(tmp_path.iterdir()) == []


def test_an_older_file_survives_a_failed_export(student, x, tmp_path):
    path = tmp_path / "net"
    path.write_text("older")
    deployed = deploy(student, x)
    break_scale(deployed)
    with pytest.raises(VerificationError):
        export_deployed(deployed, student, path, golden_input=x)
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


FULL = """
import resource, signal, sys, torch
from pathlib import Path
from bnnconvert.errors import UsageError
from bnnconvert.exporters.draft import module_bytes
from bnnconvert.exporters.packed import export_packed
from tests.students import Block, trace
student = trace(Block())
x = torch.randn(2, 3, 8, 8)
folder = Path(sys.argv[1])
export_packed(student, folder / "first", golden_input=x)
size = (folder / "first").stat().st_size
(folder / "first").unlink()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
try:
    export_packed(student, folder / "net", golden_input=x)
except UsageError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on file sizes here")
def test_a_full_disk_leaves_nothing_behind(tmp_path):
    run = [sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(
        run, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    assert "space" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(student, x, tmp_path):
    with pytest.raises(UsageError, match="nowhere"):
        export_packed(student, tmp_path / "nowhere" / "net", golden_input=x)


class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv(3, 4)

    def forward(self, x):
        y = self.conv(x)
        return y - y.mean(0, keepdim=True)


class Summed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv(3, 4)

    def forward(self, x):
        return self.conv(x).mean(0)


@pytest.mark.parametrize(("module", "words"), [(Centred, "changes the output of another"), (Summed, "first axis")])
def test_samples_must_not_meet(module, words, x, tmp_path):
    with pytest.raises(RefusalError, match=words):
        export_packed(trace(module()), tmp_path / "net", golden_input=x)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_golden_input(student, tmp_path):
    with pytest.raises(UsageError, match="no sample"):
        export_packed(student, tmp_path / "net", golden_input=torch.zeros(0, 3, 8, 8))


def test_one_channel_one_pixel_one_bit(tmp_path):
    student = trace(nn.Sequential(conv(1, 1, 1), nn.BatchNorm2d(1), conv(1, 1, 1), nn.Flatten(), linear(1, 2)))
    x = torch.tensor([0.0, -0.0, float("nan"), 1.0]).reshape(4, 1, 1, 1)
    report = export_packed(student, tmp_path / "net", golden_input=x)
    assert report.golden_difference == 0
    assert [layer.weight_bytes for layer in report.layers] == [1, 1, 2]
    assert np.isfinite(Session(tmp_path / "net").run(x.numpy())).all()
