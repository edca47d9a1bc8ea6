"""The commands as typed, one after another, on scikit-learn's digits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bnnconvert
from bnnconvert.binarizers import WEIGHT_BINARIZERS
from bnnconvert.recipe import recipe_names, recipe_text
from bnnconvert.runtime import native
from bnnconvert.train import reconstruct
from bnnconvert.train.losses import LOSSES
from tests.cli.conftest import Shell, listing, small_net


def test_three_commands_leave_a_verified_file(done: Shell) -> None:
    assert Path("model.packed.safetensors").is_file()
    report = done.json("verify", "model.packed.safetensors", "--against", "model.bnn", "--data", "digits")
    assert report["passed"]
    assert report["agreement"] >= 0.999
    assert report["samples"] == 359


def test_each_command_says_the_next(shell: Shell) -> None:
    torch.save(small_net(), "model.pt")
    assert "Next: bnnconvert finetune --data DIR" in shell.ok("convert", "model.pt", "--recipe", "bnn").stderr
    tuned = shell.ok("finetune", "--data", "digits", "--max-steps", "2", "--device", "cpu")
    assert "Next: bnnconvert export --packed" in tuned.stderr
    assert (
        "Next: bnnconvert verify model.packed.safetensors --against model.bnn" in shell.ok("export", "--packed").stderr
    )


def test_plan_names_layers_reasons_and_bytes(shell: Shell) -> None:
    torch.save(small_net(), "model.pt")
    before = listing()
    shown = shell.ok("convert", "model.pt", "--recipe", "xnor", "--dry-run")
    assert listing() == before
    for words in ("first layer: reads", "last layer: gives", "reorder-pool", "EXACT", "8x8x3x3", "mult-adds"):
        assert words in shown.stdout
    plan = shell.json("convert", "model.pt", "--recipe", "xnor", "--dry-run")
    assert [layer["name"] for layer in plan["layers"]] == ["0", "3", "8"]
    assert [layer["decision"] for layer in plan["layers"]] == ["float", "binary", "float"]
    assert plan["totals"]["predicted_artifact_bytes"] < plan["totals"]["model_bytes"]
    assert plan["run"] is None
    assert [spec["shape"] for spec in plan["inputs"]] == [[1, 1, 8, 8]]


def test_guessed_shape_is_told(shell: Shell) -> None:
    torch.save(small_net(), "model.pt")
    assert "1,1,8,8 guessed" in shell.ok("convert", "model.pt", "--recipe", "xnor", "--dry-run").stderr
    told = shell.ok("convert", "model.pt", "--recipe", "xnor", "--dry-run", "--input-shape", "1,1,8,8")
    assert "guessed" not in told.stderr


def test_newest_run_is_used_and_named(done: Shell) -> None:
    shown = done.ok("evaluate", "--data", "digits")
    assert "model.bnn" in shown.stderr
    assert "359 test samples" in shown.stdout


@pytest.mark.parametrize("target", ["model.pt", "model.bnn", "model.packed.safetensors"])
def test_evaluate_tells_accuracy_and_samples(done: Shell, target: str) -> None:
    report = done.json("evaluate", target, "--data", "digits")
    assert 0 <= report["accuracy"] <= 1
    assert report["samples"] == 359


def test_packed_and_student_are_equally_accurate(done: Shell) -> None:
    accuracies = [done.json("evaluate", t)["accuracy"] for t in ("model.bnn",)]
    accuracies.append(done.json("evaluate", "model.packed.safetensors", "--data", "digits")["accuracy"])
    assert accuracies[0] == accuracies[1]


def test_evaluate_takes_another_split(done: Shell) -> None:
    assert done.json("evaluate", "--data", "digits", "--split", "train")["samples"] == 1438


def test_export_predicts_the_tensors_bytes(done: Shell) -> None:
    report = done.json("export", "--packed", "--out", "again.packed.safetensors")
    assert report["predicted_bytes"] == report["tensor_bytes"]
    assert report["file_bytes"] == Path("again.packed.safetensors").stat().st_size
    assert Path("again.packed.safetensors").read_bytes() == Path("model.packed.safetensors").read_bytes()
    shown = done.ok("export", "--format", "packed").stdout
    assert "predicted bytes" in shown
    assert f"{report['predicted_bytes']:,}" in shown


def test_run_is_the_session(done: Shell) -> None:
    x = np.random.default_rng(0).standard_normal((3, 1, 8, 8), dtype=np.float32)
    np.save("x.npy", x)
    done.ok("run", "model.packed.safetensors", "--input", "x.npy", "--output", "y.npy")
    expected = bnnconvert.Session("model.packed.safetensors").run(x)
    np.testing.assert_array_equal(np.load("y.npy"), expected)
    told = done.json("run", "model.packed.safetensors", "--input", "x.npy", "--output", "y.npz")
    assert told["outputs"] == {"output": {"shape": [3, 10], "dtype": "float32"}}
    np.testing.assert_array_equal(np.load("y.npz")["output"], expected)


def test_verify_without_a_run_checks_the_golden_input(done: Shell) -> None:
    assert done.json("verify", "model.packed.safetensors")["passed"]
    assert "--against RUN" in done.ok("verify", "model.packed.safetensors").stdout


def test_verify_fails_for_a_student_that_changed_since(done: Shell) -> None:
    done.ok("finetune", "--data", "digits", "--restart", "--epochs", "1", "--lr", "0.05", "--device", "cpu")
    result = done("verify", "model.packed.safetensors", "--against", "model.bnn", "--data", "digits", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["passed"] is False
    assert "rounding does not explain" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("target", ["model.pt", "model.bnn", "model.packed.safetensors"])
def test_inspect_lists_objects_with_names(done: Shell, target: str) -> None:
    listed = done.json("inspect", target)
    assert listed
    assert all(isinstance(entry["name"], str) for entry in listed)
    assert target in done.ok("inspect", target).stdout


def test_recipes_are_listed_and_shown(shell: Shell) -> None:
    assert [recipe["name"] for recipe in shell.json("recipes")] == recipe_names()
    table = shell.ok("recipes").stdout
    assert all(name in table for name in recipe_names())
    assert [recipe["name"] for recipe in shell.json("recipes", "bnn")] == ["bnn"]
    Path("mine.toml").write_text(shell.ok("recipes", "bnn").stdout)
    assert [recipe["name"] for recipe in shell.json("recipes", "mine.toml")] == ["bnn"]


def test_recipes_lists_what_any_recipe_may_ask_for(shell: Shell) -> None:
    listed = {(row["key"], row["name"]): row for row in shell.json("recipes", "--options")}
    assert {name for key, name in listed if key == "losses"} == set(LOSSES)
    assert {name for key, name in listed if key == "weights"} == set(WEIGHT_BINARIZERS)
    assert listed["weights", "lab"]["options"] == ["decay = 0.999", "clip = 1.0"]
    assert listed["weights", "lab"]["source"] == WEIGHT_BINARIZERS["lab"].source
    assert listed["estimator", "identity"]["options"] == []
    assert listed["rewrites", "widen"]["options"][0] == "factor"
    assert listed["training", "gradient_bits"]["text"].startswith("Bits of the gradients")
    assert ("training.stages", "weights") in listed
    assert all(row["text"] for row in listed.values())
    assert "rotation-margin" in shell.ok("recipes", "--options").stdout


def test_recipes_that_cannot_be_exported_say_so_all_along(shell: Shell) -> None:
    reason = "each window of its input has scales and residual signs of its own"
    rows = {line.split()[0]: line for line in shell.ok("recipes").stdout.splitlines() if line.split()}
    assert " no " in rows["horq-patch"]
    assert " yes " in rows["horq"]
    shown = shell.ok("recipes", "horq-patch")
    assert shown.stdout == recipe_text("horq-patch")
    assert f"It trains and cannot be exported: 'horq-patch': {reason}" in shown.stderr
    assert "cannot be exported" not in shell.ok("recipes", "horq").stderr
    found = {recipe["name"]: recipe["unpackable"] for recipe in shell.json("recipes")}
    assert reason in found.pop("horq-patch")
    assert set(found.values()) == {None}

    torch.save(small_net(), "model.pt")
    converted = shell.ok("convert", "model.pt", "--recipe", "horq-patch")
    assert f"The student trains and cannot be exported: 3: {reason}" in converted.stderr
    assert "packed tensors" not in converted.stdout
    tuned = shell.ok("finetune", "--data", "digits", "--max-steps", "2", "--device", "cpu")
    assert "Next: bnnconvert evaluate" in tuned.stderr
    assert shell.json("evaluate")["samples"] == 359
    assert f"3: it trains and cannot be exported, as {reason}" in shell.refused("export", "--packed", code=1)
    budget = ("convert", "model.pt", "--recipe", "horq-patch", "--data", "digits", "--budget", "max-drop=2")
    assert "has no packed file to keep to a budget" in shell.refused(*budget, code=1)


def test_recipes_plots_the_gradients_of_one(shell: Shell) -> None:
    pytest.importorskip("matplotlib")
    assert "irnet.png" in shell.ok("recipes", "irnet", "--plot", "irnet.png").stdout
    assert Path("irnet.png").read_bytes().startswith(b"\x89PNG")
    assert [recipe["name"] for recipe in shell.json("recipes", "bnn", "--plot", "bnn.png")] == ["bnn"]
    assert Path("bnn.png").exists()
    assert "give its name" in shell.refused("recipes", "--plot", "all.png", code=2)


def test_resume_goes_on_and_restart_begins_anew(done: Shell) -> None:
    assert "--resume" in done.refused("finetune", "--data", "digits", code=2)
    report = done.json("finetune", "--resume", "--epochs", "1", "--device", "cpu")
    assert report["epochs"] == 1
    report = done.json("finetune", "--restart", "--max-steps", "3", "--device", "cpu")
    assert report["steps"] == 3


def test_finetune_tells_epochs_on_standard_error_only(shell: Shell) -> None:
    torch.save(small_net(), "model.pt")
    shell.ok("convert", "model.pt", "--recipe", "xnor", "--data", "digits")
    result = shell.ok("finetune", "--epochs", "2", "--device", "cpu", "--json")
    assert "epoch 2/2" in result.stderr
    assert len(json.loads(result.stdout)["history"]) == 2


def test_only_the_main_process_prints(done: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert done.ok("inspect", "model.bnn").output == ""
    assert done("inspect", "nothing.bnn").stderr.startswith("Error: [rank 1] ")


def test_debug_shows_the_traceback_wherever_it_stands(shell: Shell) -> None:
    for words in (("--debug", "inspect", "nothing.pt"), ("inspect", "nothing.pt", "--debug")):
        result = shell(*words)
        assert result.exit_code == 2
        assert "Traceback" in result.stderr
        assert "Error: " in result.stderr


def test_interrupt_says_how_to_go_on(done: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bnnconvert.pipeline.open_run", interrupt)
    result = done("finetune", "--resume")
    assert result.exit_code == 130
    assert "finetune --resume" in result.stderr
    assert "Traceback" not in result.stderr


def test_bench_times_layers_and_peers(done: Shell) -> None:
    report = done.json(
        "bench", "model.packed.safetensors", "--against", "model.bnn", "--peers", "torch", "--rounds", "1"
    )
    assert [peer["name"] for peer in report["peers"]] == ["bnnconvert", "torch"]
    assert all(peer["median"] > 0 for peer in report["peers"])
    layers = {layer["name"]: layer for layer in report["layers"]}
    assert layers["3"]["float_seconds"] > 0
    assert {name for name, layer in layers.items() if layer["is_binary"]} == {"3"} or native.library() is None
    assert set(report["slow_layers"]) <= set(layers)
    shown = done.ok("bench", "model.packed.safetensors", "--rounds", "1")
    assert "Layer by layer" in shown.stdout
    assert "bnnconvert" in shown.stdout


def test_bench_says_what_it_needs(done: Shell) -> None:
    packed = "model.packed.safetensors"
    assert "is no peer; there are bnnconvert, torch," in done.refused("bench", packed, "--peers", "x", code=2)
    assert "its run or model with --against" in done.refused("bench", packed, "--peers", "torch", code=2)
    both = done.refused("bench", packed, "--against", packed, code=2)
    assert "is an artifact; give the run or the float model" in both


def test_8_bit_ends_are_exported_and_verified(done: Shell) -> None:
    shown = done.ok("export", "--packed", "--edges", "int8", "--out", "e.packed.safetensors")
    assert "8 bits in 0 and 8:" in shown.stdout
    report = done.json("verify", "e.packed.safetensors", "--against", "model.bnn", "--data", "digits")
    assert report["passed"]


def test_sensitivity_as_typed(done: Shell) -> None:
    found = done.json("sensitivity", "model.bnn", "--data", "digits", "--samples", "100", "--device", "cpu")
    assert [layer["name"] for layer in found["layers"]] == ["3"]
    shown = done.ok("sensitivity", "--data", "digits", "--samples", "100", "--plot", "s.png", "--device", "cpu")
    assert "On 100 training images" in shown.stdout
    assert Path("s.png").read_bytes().startswith(b"\x89PNG")
    assert "--samples" in done("sensitivity", "--data", "digits", "--samples", "0").stderr
    assert "there is no such" in done.refused("sensitivity", "--data", "nowhere", code=2)


def test_calibration_needs_images_and_writes_the_fitted_student(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruct, "STEPS", 8)
    torch.save(small_net(), "model.pt")
    line = ("convert", "model.pt", "--recipe", "bwn")
    assert "give them with --data" in shell.refused(*line, "--calibrate", "256", code=2)
    assert "10 images are too few" in shell.refused(*line, "--calibrate", "10", "--data", "digits", code=2)
    shown = shell.ok(*line, "--calibrate", "256", "--data", "digits")
    assert "Calibrated on 256 images without their labels" in shown.stderr
    fitted = bnnconvert.open_run("model.bnn").model.state_dict()
    plain = bnnconvert.convert(small_net(), "bwn", data="digits").model.state_dict()
    assert not torch.equal(fitted["3.weight"], plain["3.weight"])
    assert shell.ok("export", "--packed")


def test_a_budget_mixes_widths_and_is_kept(shell: Shell) -> None:
    torch.manual_seed(0)
    torch.save(small_net(), "model.pt")
    line = ("convert", "model.pt", "--recipe", "xnor", "--budget")
    assert "max-drop=2" in shell.refused(*line, "2MB", "--data", "digits", code=2)
    assert "give them with --data" in shell.refused(*line, "max-drop=2", code=2)
    assert "the smallest plan" in shell.refused(*line, "max-bytes=10", "--data", "digits", code=2)
    assert "that small already" in shell.refused(*line, "max-bytes=1MB", "--data", "digits", code=2)
    found = shell.json(*line, "max-bytes=3500", "--data", "digits")
    assert set(found["budget"]["widths"].values()) <= {"float", "int8", "4-bit", "binary"}
    assert {"int8"} <= set(found["budget"]["widths"].values())
    assert found["budget"]["bytes"] == found["totals"]["predicted_artifact_bytes"] <= 3500
    report = shell.json("export", "--packed")
    assert report["predicted_bytes"] == report["tensor_bytes"] == found["budget"]["bytes"]
    assert report["edges"]["layers"] == [name for name, width in found["budget"]["widths"].items() if width == "int8"]
    assert shell.json("verify", "model.packed.safetensors", "--against", "model.bnn", "--data", "digits")["passed"]
