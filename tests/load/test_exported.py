"""torch.export archives: the modules, plan and outputs of the network that they came from, and no code run."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnnconvert
from bnnconvert import pipeline
from bnnconvert.errors import BnnError, RefusalError, UsageError
from bnnconvert.load.model import load_model
from tests.architectures import ARCHITECTURES
from tests.networks import Functional, Residual, Transformer, perceptron, plain, randomise, sequence

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.export")


class Scaled(nn.Module):
    """Sums with a factor, a parameter of its own, a module called twice, dropout, and a tuple as output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.body = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6, affine=False)
        self.shift = nn.Parameter(torch.randn(1, 6, 1, 1))
        self.register_buffer("table", torch.randn(6), persistent=False)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.add(self.inner(self.stem(x)), self.shift, alpha=2)
        x = self.norm(self.body(torch.relu(self.norm(self.body(x)))))
        pooled = self.drop(x.mean((2, 3)) + self.table)
        return self.head(pooled), pooled


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (3, 8, 8)),
    "functional": (Functional, (1, 8, 8)),
    "plain": (plain, (3, 8, 8)),
    "perceptron": (perceptron, (1, 8, 8)),
    "transformer": (Transformer, (3, 8, 8)),
    "sequence": (sequence, (2, 24)),
    "scaled": (Scaled, (3, 8, 8)),
    **{name: ARCHITECTURES[name] for name in ("densenet", "mobilenet", "shufflenet", "unet", "convnext", "video")},
}


def saved(module: nn.Module, shape: tuple[int, ...], path: Path, *, free: bool = True) -> Path:
    dynamic = ({0: torch.export.Dim("batch")},) if free else None
    torch.export.save(torch.export.export(module, (torch.randn(2, *shape),), dynamic_shapes=dynamic), path)
    return path


def plan_of(module: nn.Module, recipe: str, shape: tuple[int, ...]) -> list[Any]:
    student = bnnconvert.convert(module, recipe=recipe, input_shape=(1, *shape))
    layers = [(p.facts.path, p.facts.kind, p.decision, p.reason, p.facts.macs, p.bytes) for p in student.plan.layers]
    return [layers, [(r.name, r.count) for r in student.plan.rewrites], student.plan.predicted_bytes]


@pytest.mark.parametrize("name", NETWORKS)
def test_an_archive_is_planned_and_converted_as_the_network_that_it_came_from(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    module = build().eval() if name == "scaled" else randomise(build())
    loaded = load_model(saved(module, shape, tmp_path / "net.pt2"))
    assert loaded.kind == "exported"
    x = torch.randn(5, *shape)
    torch.testing.assert_close(loaded.module(x), module(x))
    kept = {k for k, _ in module.named_parameters()}
    assert {k for k, _ in loaded.module.named_parameters()} == kept
    for recipe in ("xnor", "bwn", "reactnet"):
        if name != "transformer" or recipe != "reactnet":  # its shapes are guessed from nothing else
            assert plan_of(loaded.module, recipe, shape) == plan_of(module, recipe, shape)


def test_modules_come_back_with_their_settings(tmp_path: Path) -> None:
    module = nn.Sequential(
        nn.Conv2d(4, 6, (3, 2), stride=2, padding=(1, 0), dilation=(1, 2), groups=2),
        nn.BatchNorm2d(6, eps=1e-3, momentum=0.3),
        nn.PReLU(6),
        nn.Flatten(),
        nn.Linear(6 * 4 * 3, 3, bias=False),
    ).eval()
    lifted = load_model(saved(module, (4, 8, 8), tmp_path / "net.pt2")).module
    for path in ("0", "1", "2", "4"):
        assert repr(lifted.get_submodule(path)) == repr(module.get_submodule(path))
        assert lifted.state_dict().keys() == module.state_dict().keys()


class Own(nn.Module):
    """Weights of its own beside a module inside, and one weight with two strides."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))
        self.inner = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(nn.functional.conv2d(x, self.weight, padding=1))


class Strides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        near, far = (nn.functional.conv2d(x, self.weight, padding=1, stride=stride) for stride in (1, 2))
        return near[:, :, ::2, ::2] + far


def test_weights_that_a_user_s_own_code_convolves_with_give_what_they_gave(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), Own(), Strides(), nn.Flatten(), nn.Linear(36, 2)).eval()
    lifted = load_model(saved(module, (3, 8, 8), tmp_path / "net.pt2")).module
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(lifted(x), module(x))
    assert lifted.state_dict().keys() == module.state_dict().keys()


def test_a_run_from_an_archive_is_opened_again_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = randomise(plain())
    path = saved(module, (3, 8, 8), tmp_path / "net.pt2")
    made = pipeline.convert_model(str(path), recipe="bwn")
    assert made.input_shape == (1, 3, 8, 8)
    assert not made.shape_is_guessed
    path.unlink()
    student = pipeline.open_run("net.bnn")
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(student.teacher(x), module(x))
    torch.testing.assert_close(student.model.eval()(x), made.model.eval()(x))


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


def changed(path: Path, change: Callable[[str, bytes], bytes], more: dict[str, bytes] | None = None) -> None:
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    top = next(iter(records)).partition("/")[0]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, change(name, content))
        for name, content in (more or {}).items():
            archive.writestr(f"{top}/{name}", content)


def evil_size(name: str, content: bytes) -> bytes:
    if not name.endswith("models/model.json"):
        return content
    text = content.decode()
    assert "Symbol(" in text
    return text.replace("Symbol(", "__import__('pathlib').Path('ran').touch() or Symbol(").encode()


def evil_inputs(name: str, content: bytes) -> bytes:
    return pickle.dumps(Bomb(), protocol=2) if "sample_inputs" in name else content


def evil_constant(name: str, content: bytes) -> bytes:
    if not name.endswith("constants_config.json"):
        return content
    payload = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    return json.dumps({"config": {"bomb": payload}}).encode()


@pytest.mark.parametrize(
    ("change", "more", "error", "says"),
    [
        (evil_size, {}, RefusalError, "is not made of numbers and symbols"),
        (evil_inputs, {}, RefusalError, "sample inputs are more than tensors.*--trust-pickle"),
        (evil_constant, {"data/constants/opaque_obj_0": pickle.dumps(Bomb())}, RefusalError, "holds objects beside"),
        (lambda _, c: c, {"data/aotinductor/model/lib.so": b"\x7fELF"}, RefusalError, "holds data/aotinductor/"),
        (lambda n, c: b"{" if n.endswith(".json") else c, {}, UsageError, "cannot be read as a torch.export archive"),
    ],
)
def test_nothing_in_an_archive_runs(
    change: Callable[[str, bytes], bytes],
    more: dict[str, bytes],
    error: type[BnnError],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(plain().eval(), (3, 8, 8), tmp_path / "net.pt2")
    changed(path, change, more)
    with pytest.raises(error, match=says) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    assert not Path("ran").exists()


def test_what_has_no_module_form_is_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(RefusalError, match=r"exported for 2 samples and no other number; .*dynamic_shapes"):
        load_model(saved(plain().eval(), (3, 8, 8), tmp_path / "net.pt2", free=False))
    with pytest.raises(RefusalError, match=r"was exported in training mode; call model.eval"):
        load_model(saved(plain().train(), (3, 8, 8), tmp_path / "net.pt2"))
    with pytest.raises(UsageError, match="already holds a whole network"):
        load_model(saved(plain().eval(), (3, 8, 8), tmp_path / "net.pt2"), model="tests.networks:plain")
