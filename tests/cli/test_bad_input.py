"""Whatever is wrong: one sentence that says what to do, the right exit code, no traceback, nothing half-written."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.cli.conftest import Shell, listing, small_net

USAGE, FAILURE = 2, 1


class Home(nn.Module):
    """A class of the user's own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Malicious:
    """Runs a command when it is unpickled without care."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch owned",)


def image_folder(path: Path, *, classes: int = 3, size: int = 8, channels: int = 1) -> None:
    """Random PNG files in train/ and test/."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in range(classes):
            folder = path / split / f"class{label:02}"
            folder.mkdir(parents=True)
            for number in range(4):
                shape = (size, size) if channels == 1 else (size, size, 3)
                Image.fromarray(random.integers(0, 255, shape, dtype=np.uint8)).save(folder / f"{number}.png")


def convert(shell: Shell, *words: str, code: int) -> str:
    return shell.refused("convert", "model.pt", "--recipe", "xnor", *words, code=code)


def test_missing_file(shell: Shell) -> None:
    assert "model.pt" in convert(shell, code=USAGE)


def test_not_a_model(shell: Shell) -> None:
    Path("model.pt").write_text("hello")
    assert "model.pt" in convert(shell, code=USAGE)


def test_empty_file(shell: Shell) -> None:
    Path("model.pt").touch()
    assert "model.pt" in convert(shell, code=USAGE)


def test_a_tensor_is_no_model(shell: Shell) -> None:
    torch.save(torch.zeros(3), "model.pt")
    assert "torch.save(model" in convert(shell, code=USAGE)


def test_pickle_of_unknown_classes(shell: Shell) -> None:
    torch.save(nn.Sequential(Home()), "model.pt")
    sentence = convert(shell, code=FAILURE)
    assert "Home" in sentence
    assert "--model" in sentence
    assert "--trust-pickle" in sentence


def test_malicious_pickle_does_not_run(shell: Shell) -> None:
    torch.save({"state_dict": Malicious()}, "model.pt")
    assert "system" in convert(shell, code=FAILURE)
    assert not Path("owned").exists()


def test_state_dict_without_model(shell: Shell) -> None:
    torch.save(small_net().state_dict(), "model.pt")
    assert "--model" in convert(shell, code=USAGE)


def test_state_dict_that_does_not_match(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mismatched_net.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(2, 3)\n")
    torch.save(small_net().state_dict(), "model.pt")
    sentence = convert(shell, "--model", "mismatched_net:build", code=USAGE)
    assert "mismatched_net:build" in sentence
    monkeypatch.delitem(sys.modules, "mismatched_net")


def test_factory_that_is_not_there(shell: Shell) -> None:
    assert "nowhere" in shell.refused("convert", "nowhere:build", "--recipe", "xnor", code=USAGE)


@pytest.mark.parametrize(("name", "nearest"), [("xnr", "xnor"), ("bireel", "bireal"), ("react-net", "reactnet")])
def test_near_miss_of_a_recipe(shell: Shell, name: str, nearest: str) -> None:
    torch.save(small_net(), "model.pt")
    assert f"did you mean '{nearest}'" in shell.refused("convert", "model.pt", "--recipe", name, code=USAGE)


def test_unknown_recipe_file(shell: Shell) -> None:
    torch.save(small_net(), "model.pt")
    assert "mine.toml" in shell.refused("convert", "model.pt", "--recipe", "mine.toml", code=USAGE)


def edited_recipe(shell: Shell, old: str, new: str) -> None:
    text = shell.ok("recipes", "xnor").stdout
    assert old in text
    Path("mine.toml").write_text(text.replace(old, new, 1))
    torch.save(small_net(), "model.pt")


def test_recipe_with_an_unknown_key(shell: Shell) -> None:
    edited_recipe(shell, "[training]", "[training]\nepoch = 3")
    sentence = shell.refused("convert", "model.pt", "--recipe", "mine.toml", code=USAGE)
    assert "training.epoch" in sentence
    assert "'epochs'" in sentence


def test_recipe_with_an_unknown_rewrite(shell: Shell) -> None:
    edited_recipe(shell, '"binarize"', '"binarise"')
    assert "'binarize'" in shell.refused("convert", "model.pt", "--recipe", "mine.toml", code=USAGE)


def test_rule_that_matches_nothing(shell: Shell) -> None:
    rule = '[[layers]]\nmatch = { path = ["layer9.*"] }\nkeep = "because"\n\n[[layers]]'
    edited_recipe(shell, "[[layers]]", rule)
    assert "layers[0]" in shell.refused("convert", "model.pt", "--recipe", "mine.toml", code=USAGE)


@pytest.mark.parametrize("shape", ["1,a,8,8", "8", "3,1,8,8", "1,0,8,8", "", "1,4:text", "1,4:int64:0", "1,4:int64:x"])
def test_input_shape_that_is_none(shell: Shell, shape: str) -> None:
    torch.save(small_net(), "model.pt")
    assert "--input-shape" in convert(shell, "--input-shape", shape, code=USAGE)


@pytest.mark.parametrize(
    ("text", "says"), [("1,4:text", "'text' is no element type"), ("1,4:int64:0", "'0' is no number")]
)
def test_an_input_that_is_none(shell: Shell, text: str, says: str) -> None:
    torch.save(small_net(), "model.pt")
    assert says in convert(shell, "--input-shape", text, code=USAGE)


def test_a_shape_too_many(shell: Shell) -> None:
    torch.save(small_net(), "model.pt")
    assert "1x8x8" not in convert(shell, "--input-shape", "1,1,8,8", "--input-shape", "1,4:int64:9", code=USAGE)


def test_input_shape_that_the_model_does_not_take(shell: Shell) -> None:
    torch.save(small_net(), "model.pt")
    assert "12" in convert(shell, "--input-shape", "1,1,12,12", code=USAGE)


def test_mean_that_is_no_number(shell: Shell) -> None:
    torch.save(small_net(), "model.pt")
    assert "--mean" in convert(shell, "--data", "digits", "--mean", "grey", "--std", "1", code=USAGE)


def converted(shell: Shell) -> None:
    torch.save(small_net(), "model.pt")
    shell.ok("convert", "model.pt", "--recipe", "xnor")


def test_data_folder_that_is_not_there(shell: Shell) -> None:
    converted(shell)
    assert "pictures" in shell.refused("finetune", "--data", "pictures", code=USAGE)


def test_data_folder_without_classes(shell: Shell) -> None:
    converted(shell)
    Path("pictures/train").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("pictures/train/a.png")
    assert "pictures" in shell.refused("finetune", "--data", "pictures", code=USAGE)


def test_labels_outside_the_outputs(shell: Shell) -> None:
    converted(shell)
    image_folder(Path("pictures"), classes=12)
    sentence = shell.refused("finetune", "--data", "pictures", code=FAILURE)
    assert "10 outputs" in sentence


@pytest.mark.parametrize("changes", [{"size": 12}, {"channels": 3}], ids=["size", "channels"])
def test_wrong_image_size(shell: Shell, changes: dict[str, int]) -> None:
    converted(shell)
    image_folder(Path("pictures"), **changes)
    assert "the model takes" in shell.refused("finetune", "--data", "pictures", code=FAILURE)


def test_finetune_without_data(shell: Shell) -> None:
    converted(shell)
    assert "--data" in shell.refused("finetune", code=USAGE)


@pytest.mark.parametrize(
    "words", [("finetune", "--data", "digits"), ("export", "--packed"), ("evaluate",)], ids=" ".join
)
def test_before_convert(shell: Shell, words: tuple[str, ...]) -> None:
    assert "bnnconvert convert" in shell.refused(*words, code=USAGE)


@pytest.mark.parametrize("words", [(), ("--packed", "--format", "packed")], ids=["neither", "both"])
def test_export_needs_one_format(shell: Shell, words: tuple[str, ...]) -> None:
    assert "--packed" in shell.refused("export", *words, code=USAGE)


def test_unknown_format(done: Shell) -> None:
    assert "'packed'" in done.refused("export", "--format", "paked", code=USAGE)


@pytest.mark.parametrize("command", ["verify", "inspect", "evaluate", "run"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_damaged_artifact(done: Shell, command: str, damage: str) -> None:
    file = Path("model.packed.safetensors")
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        del content[-100:]
    elif damage == "flipped":
        content[-100] ^= 1
    else:
        content.clear()
    file.write_bytes(content)
    np.save("x.npy", np.zeros((1, 1, 8, 8), np.float32))
    more = {"run": ("--input", "x.npy", "--output", "y.npy"), "evaluate": ("--data", "digits")}.get(command, ())
    assert str(file) in done.refused(command, str(file), *more, code=FAILURE)


@pytest.mark.parametrize(
    ("source", "target", "word"),
    [
        ("none.npy", "y.npy", "none.npy"),
        ("x.txt", "y.npy", "numpy.save"),
        ("text.npy", "y.npy", "text.npy"),
        ("objects.npy", "y.npy", "objects.npy"),
        ("x.npy", "y.txt", ".npz"),
        ("x.npy", "none/y.npy", "none"),
        ("wrong.npy", "y.npy", "shape"),
        ("double.npy", "y.npy", "float64"),
    ],
)
def test_bad_arrays(done: Shell, source: str, target: str, word: str) -> None:
    np.save("x.npy", np.zeros((1, 1, 8, 8), np.float32))
    np.save("wrong.npy", np.zeros((1, 3, 8, 8), np.float32))
    np.save("double.npy", np.zeros((1, 1, 8, 8)))
    np.save("objects.npy", np.array([{}]), allow_pickle=True)
    Path("text.npy").write_text("hello")
    words = ("run", "model.packed.safetensors", "--input", source, "--output", target)
    assert word in done.refused(*words, code=USAGE)


def test_unknown_command_and_option(shell: Shell) -> None:
    for words in (("convrt",), ("convert", "model.pt", "--recipy", "xnor"), ("convert", "model.pt")):
        result = shell(*words)
        assert result.exit_code == USAGE
        assert "Traceback" not in result.stderr
        assert result.stdout == ""


@pytest.mark.parametrize("device", ["tpu9", "cuda:99"])
def test_device_that_is_not_there(shell: Shell, device: str) -> None:
    converted(shell)
    before = listing()
    result = shell("finetune", "--data", "digits", "--device", device)
    assert result.exit_code == USAGE
    assert device in result.stderr
    # The data set is on record by then, which is no harm.
    assert listing().keys() == before.keys()


@pytest.mark.parametrize(
    "words", [("convert", "model.pt", "--recipe", "xnor", "--out", "b.bnn"), ("export", "--packed")]
)
def test_full_disk(done: Shell, words: tuple[str, ...]) -> None:
    """A limit on the size of files stands for a full disk: the write fails in the same place, with its own error."""
    Path("model.packed.safetensors").unlink()
    before = listing()
    run = subprocess.run(
        [sys.executable, "-m", "bnnconvert", *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
    )
    assert run.returncode == USAGE, run.stderr
    assert "no space" in run.stderr
    assert "Traceback" not in run.stderr
    assert listing() == before
