import hashlib
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bnnconvert.errors import RefusalError, UsageError
from bnnconvert.load.model import load_model
from bnnconvert.load.shapes import is_lazy

UserModule = Callable[[str, str], None]

NET = """
import torch
from torch import nn

def tiny():
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 2, 3), bn=nn.BatchNorm2d(2)))

from collections import OrderedDict
instance = nn.Linear(2, 3)
shape = (1, 2)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)
    def forward(self, x):
        return self.fc(x)
def needs(x):
    return x
def fails():
    raise ValueError("no weights here")
def scripted():
    return torch.jit.script(nn.ReLU())
def parallel():
    return nn.DataParallel(Net())
def lazy():
    return nn.LazyLinear(3)
def meta():
    return nn.Linear(2, 2, device="meta")
def double():
    return nn.Sequential(nn.Linear(2, 2, dtype=torch.float64), nn.Dropout()).train()
"""


def tiny() -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 2, 3), bn=nn.BatchNorm2d(2)))


def test_a_saved_module_comes_back_the_same_in_evaluation_mode(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
    model(torch.randn(8, 3, 5, 5))
    torch.save(model, tmp_path / "model.pt")
    loaded = load_model(str(tmp_path / "model.pt"))
    assert loaded.kind == "pickle"
    assert loaded.sha256 == hashlib.sha256((tmp_path / "model.pt").read_bytes()).hexdigest()
    assert not any(module.training for module in loaded.module.modules())
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(loaded.module(x), model.eval()(x))


def test_half_and_double_precision_become_single(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2).half(), nn.Linear(2, 2).double()), tmp_path / "model.pt")
    loaded = load_model(tmp_path / "model.pt")
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}


def test_a_module_inside_a_training_checkpoint_is_found(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": nn.Linear(2, 2), "optimizer": {"lr": 0.1}}, tmp_path / "model.pt")
    assert isinstance(load_model(tmp_path / "model.pt").module, nn.Linear)


def test_a_data_parallel_wrapper_is_taken_off(tmp_path: Path) -> None:
    torch.save(nn.DataParallel(nn.Linear(2, 2)), tmp_path / "model.pt")
    assert isinstance(load_model(tmp_path / "model.pt").module, nn.Linear)


def test_a_whole_module_needs_no_factory(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(UsageError, match="already holds a whole Linear; leave out --model a:b"):
        load_model(tmp_path / "model.pt", model="a:b")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_a_state_dict_loads_with_its_factory(tmp_path: Path, user_module: UserModule, suffix: str) -> None:
    user_module("net_state", NET)
    saved = tiny()
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(saved.state_dict(), path)
    loaded = load_model(path, model="net_state:tiny")
    assert loaded.kind == "state-dict"
    assert loaded.sha256 is not None
    for name, value in saved.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], value)


def test_the_format_of_before_torch_1_6_is_read(tmp_path: Path, user_module: UserModule) -> None:
    user_module("net_old", NET)
    saved = tiny()
    torch.save(saved.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    loaded = load_model(tmp_path / "old.pth", model="net_old:tiny")
    assert torch.equal(loaded.module.state_dict()["conv.weight"], saved.conv.weight)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module.model."])
@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model"])
def test_wrappers_and_prefixes_are_taken_off(
    tmp_path: Path, user_module: UserModule, prefix: str, key: str | None
) -> None:
    user_module("net_wrapped", NET)
    tensors = {prefix + name: value for name, value in tiny().state_dict().items()}
    torch.save(tensors if key is None else {key: tensors, "epoch": 3}, tmp_path / "w.pt")
    loaded = load_model(tmp_path / "w.pt", model="net_wrapped:tiny")
    assert torch.equal(loaded.module.state_dict()["conv.weight"], tensors[f"{prefix}conv.weight"])


def test_a_counter_that_old_files_lack_is_not_missed(tmp_path: Path, user_module: UserModule) -> None:
    user_module("net_counter", NET)
    tensors = {name: v for name, v in tiny().state_dict().items() if not name.endswith("num_batches_tracked")}
    save_file(tensors, tmp_path / "w.safetensors")
    assert load_model(tmp_path / "w.safetensors", model="net_counter:tiny").kind == "state-dict"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_state_dict_alone_asks_for_the_factory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(dict(tiny().state_dict()), path)
    with pytest.raises(UsageError, match=r"holds tensors \(\w+\.\w+, \.\.\.\) but not the network; add --model"):
        load_model(path)


def test_a_mismatch_names_what_is_missing_and_unexpected(tmp_path: Path, user_module: UserModule) -> None:
    user_module("net_mismatch", NET)
    tensors = dict(tiny().state_dict())
    del tensors["conv.bias"]
    tensors |= {f"head.{i}": torch.zeros(1) for i in range(5)}
    torch.save(tensors, tmp_path / "w.pt")
    with pytest.raises(UsageError) as caught:
        load_model(tmp_path / "w.pt", model="net_mismatch:tiny")
    assert "1 missing (conv.bias), 5 unexpected (head.0, head.1, head.2, ...)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mismatch_names_both_shapes(tmp_path: Path, user_module: UserModule) -> None:
    user_module("net_shapes", NET)
    torch.save(tiny().state_dict() | {"conv.weight": torch.zeros(4, 1, 3, 3)}, tmp_path / "w.pt")
    with pytest.raises(UsageError, match=r"1 of another shape \(conv.weight is 4x1x3x3 in the file but 2x1x3x3 in"):
        load_model(tmp_path / "w.pt", model="net_shapes:tiny")


def test_a_factory_alone(user_module: UserModule) -> None:
    user_module("net_alone", NET)
    before = list(sys.path)
    loaded = load_model("net_alone:double")
    assert sys.path == before
    assert (loaded.kind, loaded.sha256, loaded.spec) == ("factory", None, "net_alone:double")
    assert not loaded.module[1].training
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}


@pytest.mark.parametrize(("name", "kind"), [("Net", "Net"), ("instance", "Linear"), ("parallel", "Net")])
def test_a_class_and_an_instance_will_do(user_module: UserModule, name: str, kind: str) -> None:
    user_module("net_kinds", NET)
    assert type(load_model(f"net_kinds:{name}").module).__name__ == kind


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("net_bad:tinny", "has no 'tinny'; did you mean 'tiny'"),
        ("net_bad:shape", "gave a tuple; the factory must return a torch.nn.Module"),
        ("net_bad:needs", "calling it without arguments failed .TypeError"),
        ("net_bad:fails", "failed .ValueError: no weights here"),
        ("net_bad_missing:tiny", "there is no module net_bad_missing in"),
        ("net_bad.sub:tiny", "there is no module net_bad.sub in"),
    ],
)
def test_a_bad_factory_is_a_usage_error(user_module: UserModule, spec: str, says: str) -> None:
    user_module("net_bad", NET)
    before = list(sys.path)
    with pytest.raises(UsageError, match=f"^{spec}: .*{says}"):
        load_model(spec)
    assert sys.path == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import not_installed_anywhere", "importing net_broken failed .*not_installed_anywhere"),
        ("1 / 0", "importing net_broken failed .ZeroDivisionError"),
        ("def f(:", "importing net_broken failed .SyntaxError"),
    ],
)
def test_a_module_that_does_not_import_is_a_usage_error(user_module: UserModule, text: str, says: str) -> None:
    user_module("net_broken", text)
    with pytest.raises(UsageError, match=says):
        load_model("net_broken:f")


def test_modules_without_weights_are_refused(user_module: UserModule) -> None:
    user_module("net_empty", NET)
    with pytest.raises(RefusalError, match="weight has no values"):
        load_model("net_empty:meta")


def test_lazy_layers_of_a_factory_wait_for_an_input(user_module: UserModule) -> None:
    user_module("net_lazy", NET)
    assert is_lazy(load_model("net_lazy:lazy").module)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_module_is_refused(user_module: UserModule) -> None:
    user_module("net_scripted", NET)
    with pytest.raises(RefusalError, match="is a TorchScript module"):
        load_model("net_scripted:scripted")


def test_a_factory_takes_no_second_factory(user_module: UserModule) -> None:
    user_module("net_twice", NET)
    with pytest.raises(UsageError, match="is a factory itself; leave out --model net_twice:Net"):
        load_model("net_twice:tiny", model="net_twice:Net")


def test_a_malformed_factory_name_says_what_it_should_be(tmp_path: Path) -> None:
    torch.save(tiny().state_dict(), tmp_path / "w.pt")
    with pytest.raises(UsageError, match=r"^resnet: is not of the form package\.module:factory"):
        load_model(tmp_path / "w.pt", model="resnet")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"epoch": 1, "lr": 0.1}, "holds a dictionary with the keys 'epoch', 'lr', neither a module nor a state dict"),
        ({}, "holds an empty dictionary"),
        (torch.zeros(2), "holds a Tensor"),
        ([1, 2], "holds a list"),
        (3, "holds an int"),
    ],
)
def test_other_content_is_described(tmp_path: Path, content: object, says: str) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(UsageError, match=says):
        load_model(tmp_path / "model.pt")
