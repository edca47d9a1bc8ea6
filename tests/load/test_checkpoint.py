"""Pickles that try to run code, and the pickles of libraries that must load all the same."""

import functools
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.serialization import get_safe_globals

from bnnconvert.errors import RefusalError, UsageError
from bnnconvert.load.allowed import StoredPartial, is_allowed
from bnnconvert.load.model import load_model


class Calls:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Net(nn.Linear):
    """A class of nobody's library."""


class Enlarged(dict[str, object]):
    pass


def names(module: str, name: str) -> bytes:
    """A pickle that is one GLOBAL."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"."


def write_checkpoint(path: Path, data: bytes) -> None:
    """A checkpoint with a hand-made pickle inside."""
    writer = torch._C.PyTorchFileWriter(str(path))
    writer.write_record("data.pkl", data, len(data))
    writer.write_record("byteorder", b"little", 6)
    writer.write_end_of_file()


def with_attribute(value: object, name: str = "extra") -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 2))
    module.__dict__[name] = value
    return module


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that exists only if code of a pickle ran."""
    return tmp_path / "code-ran"


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("where", ["alone", "in a module", "in a state dict"])
def test_a_pickle_that_runs_a_command_is_refused_and_does_not_run(
    tmp_path: Path, canary: Path, zipped: bool, where: str
) -> None:
    evil = Calls(os.system, f"touch {canary}")
    content = {"alone": evil, "in a module": with_attribute(evil), "in a state dict": {"a": torch.zeros(1), "b": evil}}
    torch.save(content[where], tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    for model in (None, "a:b"):
        with pytest.raises(RefusalError, match=r"--model package\.module:factory.*--trust-pickle.*runs whatever code"):
            load_model(tmp_path / "model.pt", model=model)
    assert not canary.exists()


def test_the_command_would_have_run(tmp_path: Path, canary: Path) -> None:
    torch.save(with_attribute(Calls(os.system, f"touch {canary}")), tmp_path / "model.pt")
    load_model(tmp_path / "model.pt", trust_pickle=True)
    assert canary.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_a_bare_pickle_is_refused(tmp_path: Path, canary: Path, protocol: int) -> None:
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Calls(os.system, f"touch {canary}"), protocol=protocol))
    with pytest.raises((RefusalError, UsageError)) as caught:
        load_model(tmp_path / "model.pt")
    assert "\n" not in str(caught.value)
    assert not canary.exists()


def test_an_unknown_class_is_named_with_both_ways_out(tmp_path: Path) -> None:
    torch.save(Net(2, 2), tmp_path / "model.pt")
    with pytest.raises(RefusalError) as caught:
        load_model(tmp_path / "model.pt")
    said = str(caught.value)
    assert f"names {Net.__module__}.Net, which is no module class of torch.nn, torchvision or timm" in said
    assert "--model package.module:factory" in said
    assert "--trust-pickle" in said
    assert "\n" not in said


def test_a_module_in_the_format_of_before_torch_1_6_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(RefusalError, match=r"holds a module in the format of before torch 1\.6"):
        load_model(tmp_path / "model.pt")


def test_a_trusted_pickle_loads_any_class(tmp_path: Path) -> None:
    torch.save(Net(2, 2), tmp_path / "model.pt")
    assert type(load_model(tmp_path / "model.pt", trust_pickle=True).module) is Net


def test_a_trusted_pickle_of_a_script_says_why_it_fails(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model.pt", names("__main__", "NetOfTheScript"))
    with pytest.raises(UsageError, match=r"its class was defined in a script, .*--model package\.module:factory"):
        load_model(tmp_path / "model.pt", trust_pickle=True)


@pytest.mark.parametrize(
    "value",
    [
        Calls(getattr, nn.Linear, "forward"),
        functools.partial(os.system, "true"),
        eval,
        __import__,
        os.system,
        torch.hub.load,
        torch.load,
        Enlarged(a=1),
        torch.fx.symbolic_trace(nn.ReLU()),
    ],
    ids=lambda value: getattr(value, "__qualname__", type(value).__name__),
)
def test_foreign_names_are_refused_wherever_they_are(tmp_path: Path, value: object) -> None:
    torch.save(with_attribute(value), tmp_path / "model.pt")
    with pytest.raises(RefusalError, match="which is no module class"):
        load_model(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (Calls(nn.Linear, 2, 2), r"calls torch\.nn\.modules\.linear\.Linear"),
        (Calls(nn.functional.relu, torch.zeros(1)), r"calls torch\.nn\.functional\.relu"),
        (Calls(nn.Linear.__new__, nn.Linear), "which is no module class"),
    ],
    ids=["class", "function", "new"],
)
def test_an_allowed_name_may_be_stored_but_not_called(tmp_path: Path, value: object, says: str) -> None:
    torch.save(with_attribute(value), tmp_path / "model.pt")
    with pytest.raises(RefusalError, match=says):
        load_model(tmp_path / "model.pt")


def test_an_instance_made_with_arguments_is_refused(tmp_path: Path) -> None:
    data = b"\x80\x02ctorch.nn.modules.linear\nLinear\nK\x02\x85\x81."
    write_checkpoint(tmp_path / "model.pt", data)
    with pytest.raises(RefusalError, match=r"creates torch\.nn\.modules\.linear\.Linear with arguments"):
        load_model(tmp_path / "model.pt")


def test_a_module_without_its_state_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model.pt", b"\x80\x02ctorch.nn.modules.linear\nLinear\n)\x81.")
    with pytest.raises(RefusalError, match="its Linear is incomplete"):
        load_model(tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["forward", "__call__", "__deepcopy__", "_compiled_call_impl", "state_dict"])
def test_an_attribute_may_not_replace_a_method(tmp_path: Path, name: str) -> None:
    module = with_attribute(nn.ReLU(), name)
    # Module.__getstate__ drops _compiled_call_impl; a hand-made pickle need not
    state = dict(vars(module))
    torch.save(HandMade(state), tmp_path / "model.pt")
    with pytest.raises(RefusalError, match=f"in its Sequential an attribute replaces the method {name}"):
        load_model(tmp_path / "model.pt")


class HandMade:
    """Pickles as an `nn.Sequential` with any state."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def __reduce_ex__(self, protocol: object) -> Any:
        import copyreg

        return copyreg.__newobj__, (nn.Sequential,), self.state  # type: ignore[attr-defined]

    @property
    def __class__(self) -> Any:
        return nn.Sequential


def test_hooks_are_refused(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    module[0].register_forward_hook(nn.Identity())
    torch.save(module, tmp_path / "model.pt")
    with pytest.raises(RefusalError, match=r"its Linear has hooks attached \(_forward_hooks\)"):
        load_model(tmp_path / "model.pt")


def test_stored_classes_functions_and_partials_are_restored(tmp_path: Path) -> None:
    module = with_attribute(
        {
            "class": nn.BatchNorm2d,
            "functions": [nn.functional.relu, (nn.functional.gelu,)],
            "partial": functools.partial(nn.LayerNorm, eps=1e-6),
        }
    )
    torch.save(module, tmp_path / "model.pt")
    extra = load_model(tmp_path / "model.pt").module.extra
    assert extra["class"] is nn.BatchNorm2d
    assert extra["functions"] == [nn.functional.relu, (nn.functional.gelu,)]
    assert isinstance(extra["partial"], StoredPartial)
    assert extra["partial"].function is nn.LayerNorm
    with pytest.raises(RefusalError, match=r"calls a functools\.partial that came from a pickle"):
        extra["partial"](4)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_modules_with_activation_functions_load(tmp_path: Path, activation: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, activation=activation, batch_first=True).eval()
    torch.save(layer, tmp_path / "model.pt")
    x = torch.randn(1, 3, 8)
    torch.testing.assert_close(load_model(tmp_path / "model.pt").module(x), layer(x))


def test_a_module_used_twice_stays_one(tmp_path: Path) -> None:
    relu = nn.ReLU()
    torch.save(nn.Sequential(relu, nn.Linear(2, 2), relu), tmp_path / "model.pt")
    loaded = load_model(tmp_path / "model.pt").module
    assert loaded[0] is loaded[2]


def test_nothing_stays_allowed_afterwards(tmp_path: Path) -> None:
    before = set(map(str, get_safe_globals()))
    torch.save(nn.Linear(2, 2), tmp_path / "good.pt")
    torch.save(with_attribute(Calls(nn.Linear, 2, 2)), tmp_path / "bad.pt")
    load_model(tmp_path / "good.pt")
    with pytest.raises(RefusalError):
        load_model(tmp_path / "bad.pt")
    assert set(map(str, get_safe_globals())) == before


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.9, 0.99])
def test_a_file_cut_short_is_a_usage_error(tmp_path: Path, cut: float) -> None:
    torch.save(nn.Linear(50, 50), tmp_path / "model.pt")
    whole = (tmp_path / "model.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(whole[: int(len(whole) * cut)])
    with pytest.raises(UsageError, match="is damaged or not complete"):
        load_model(tmp_path / "model.pt")


@pytest.mark.parametrize("data", [b"", b"\x80\x02.", b"\x80\x02X\xff\xff\xff\x7fab", b"\x80\x04\x95.", b"garbage"])
def test_a_damaged_pickle_inside_is_one_sentence(tmp_path: Path, data: bytes) -> None:
    write_checkpoint(tmp_path / "model.pt", data)
    with pytest.raises((UsageError, RefusalError)) as caught:
        load_model(tmp_path / "model.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("torch.nn.modules.conv.Conv2d", True),
        ("timm.models.resnet.ResNet", True),
        ("torchvision.ops.misc.Permute", True),
        ("torch.nn.functional.relu", True),
        ("torch.nn.functional.importlib", False),
        ("torch.nn.functional.torch", False),
        ("torch.nn.modules.module.torch.hub.load", True),  # by name alone; it resolves to no class, see below
        ("torchvision.datasets.utils.download_url", False),
        ("timm.create_model", False),
        ("torch.nn.modulesque.Evil", False),
        ("torch.nn.modules..Evil", False),
        ("torch.fx.graph_module.GraphModule", False),
        ("builtins.getattr", False),
        ("functools.partial", True),
        ("functools.reduce", False),
    ],
)
def test_names_are_judged_without_importing(name: str, allowed: bool) -> None:
    assert is_allowed(name) is allowed


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch.nn.modules.module", "OrderedDict"),
        ("torch.nn.modules.module", "torch.hub.load"),
        ("torch.nn.modules.module", "functools"),
        ("torch.nn.modules.module", "register_module_forward_hook"),
        ("torch.nn.modules.module", "Missing"),
        ("torch.nn.modules.missing", "Missing"),
        ("torch.nn.modules.container", "Container"),
    ],
)
def test_only_ordinary_module_classes_are_found_there(tmp_path: Path, module: str, name: str) -> None:
    write_checkpoint(tmp_path / "model.pt", names(module, name))
    with pytest.raises(RefusalError, match="does not offer as an ordinary module class"):
        load_model(tmp_path / "model.pt")


def forget(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make the interpreter look for a package anew."""
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch, "timm")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    write_checkpoint(tmp_path / "model.pt", names("timm.models.resnet", "ResNet"))
    with pytest.raises(UsageError, match="holds classes of timm, which is not installed; pip install timm"):
        load_model(tmp_path / "model.pt")


def test_a_library_that_does_not_import_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch, "torchvision")
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    write_checkpoint(tmp_path / "model.pt", names("torchvision.models.resnet", "ResNet"))
    with pytest.raises(UsageError, match=r"torchvision, whose import fails here \(operator nms does not exist\)"):
        load_model(tmp_path / "model.pt")


def test_a_foreign_name_is_refused_before_any_library_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, canary: Path
) -> None:
    forget(monkeypatch, "torchvision")
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(f"open({str(canary)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    write_checkpoint(tmp_path / "model.pt", b"\x80\x02ctorchvision.models.resnet\nResNet\ncposix\nsystem\n\x86.")
    with pytest.raises(RefusalError, match=r"names posix\.system"):
        load_model(tmp_path / "model.pt")
    assert not canary.exists()


def library(name: str) -> Any:
    """The installed model library, or skip: a CUDA build of torchvision does not import beside a CPU build of torch."""
    try:
        return __import__(name, fromlist=["models"])
    except (ImportError, RuntimeError) as error:
        return pytest.skip(f"{name} does not import here: {error}")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vit_b_16"])
def test_torchvision_models_load(tmp_path: Path, name: str) -> None:
    model = getattr(library("torchvision.models"), name)(weights=None).eval()
    torch.save(model, tmp_path / "model.pt")
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_model(tmp_path / "model.pt").module(x), model(x))


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_timm_models_load(tmp_path: Path, name: str) -> None:
    model = library("timm").create_model(name).eval()
    torch.save(model, tmp_path / "model.pt")
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_model(tmp_path / "model.pt").module(x), model(x))


def test_a_class_that_compiles_source_is_refused_even_in_a_library(tmp_path: Path) -> None:
    library("torchvision.models.feature_extraction")
    write_checkpoint(tmp_path / "model.pt", names("torchvision.models.feature_extraction", "DualGraphModule"))
    with pytest.raises(RefusalError, match="does not offer as an ordinary module class"):
        load_model(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("ending", "says"),
    [
        (b"X\x04\x00\x00\x00NCHW\x85R.", "holds a Format"),
        (b"X\x04\x00\x00\x00NCHW\x85R}X\x01\x00\x00\x00aK\x01sb.", "Can only build"),
        (b"X\x04\x00\x00\x00NCHWX\x01\x00\x00\x00a\x86R.", r"calls timm\.layers\.format\.Format"),
        (b")\x81.", "is damaged"),
    ],
    ids=["look up", "set state", "define", "create"],
)
def test_an_enumeration_is_for_looking_up_only(tmp_path: Path, ending: bytes, says: str) -> None:
    library("timm")
    write_checkpoint(tmp_path / "model.pt", b"\x80\x02ctimm.layers.format\nFormat\n" + ending)
    with pytest.raises((UsageError, RefusalError), match=says):
        load_model(tmp_path / "model.pt")
