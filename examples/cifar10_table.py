"""Make the README's table: every recipe on a trained ResNet-20 and CIFAR-10 as an image folder.

python examples/cifar10_table.py --data CIFAR10 --weights resnet20-cifar10.safetensors --out OUT

Each recipe leaves OUT/RECIPE.bnn, OUT/RECIPE.packed.safetensors and OUT/RECIPE.json. The command may be stopped at
any moment and typed again: a finished recipe is skipped, an unfinished one goes on from its checkpoint.
"""

import argparse
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import bnnconvert
from bnnconvert.load.data import load_data
from bnnconvert.pipeline import Student, convert_model
from bnnconvert.report.table import Column, Table, number
from bnnconvert.train import evaluate_samples, prepare
from bnnconvert.values.data import Data, normalise
from bnnconvert.values.files import write_text
from bnnconvert.values.report import VerifyReport

RECIPES = ("bwn", "xnor", "bireal", "irnet", "reactnet", "bnn")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CALIBRATION_BATCHES, CALIBRATION_BATCH = 50, 128


class EpochLines:
    """Prints a line per epoch."""

    def start(self, *, total_steps: int, done_steps: int, epochs: int) -> None:
        """Tell where the run begins."""
        print(f"  steps {done_steps} to {total_steps}, {epochs} epochs", flush=True)

    def step(self, *, step: int, loss: float, accuracy: float, seconds_left: float) -> None:
        """Tell nothing."""

    def epoch(self, record: Any) -> None:
        """Tell how the epoch ended."""
        print(
            f"  epoch {record.epoch}: loss {record.loss:.4f}, train {record.train_accuracy:.2%}, "
            f"held out {record.held_out_accuracy:.2%}, {record.seconds:.0f} s",
            flush=True,
        )

    def note(self, message: str) -> None:
        """Pass a message on."""
        print(f"  {message}", flush=True)

    def done(self, report: Any) -> None:
        """Tell nothing."""


def measure(recipe: str, data: Data, arguments: argparse.Namespace) -> dict[str, Any]:
    """Convert, fine-tune, export and measure one recipe, going on where an earlier call was stopped."""
    run, packed = arguments.out / f"{recipe}.bnn", arguments.out / f"{recipe}.packed.safetensors"
    student = bnnconvert.open_run(run) if (run / "run.json").exists() else new_run(recipe, run, arguments)
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    converted = converted_accuracy(student, data, device)
    print(f"{recipe}: converted, batch norm re-estimated: {converted:.2%}", flush=True)
    trained = bnnconvert.finetune(
        student,
        data,
        epochs=arguments.epochs,
        device=arguments.device,
        seed=arguments.seed,
        resume=True,
        progress=EpochLines(),
    )
    tuned = accuracy(student.model, data, device)
    exported = bnnconvert.export(student, packed)
    packed_accuracy = bnnconvert.evaluate(packed, data, threads=arguments.threads).accuracy
    compared = bnnconvert.verify(packed, against=student, data=data)
    assert isinstance(compared, VerifyReport)
    return {
        "recipe": recipe,
        "float": accuracy(student.teacher, data, device),
        "converted": converted,
        "fine_tuned": tuned,
        "packed": packed_accuracy,
        "agreement": compared.agreement,
        "samples": compared.samples,
        "differing_samples": compared.differing_samples,
        "unexplained_samples": compared.unexplained_samples,
        "flips": sum(layer.flips for layer in compared.layers),
        "float_bytes": exported.float_bytes,
        "predicted_bytes": exported.predicted_bytes,
        "tensor_bytes": exported.tensor_bytes,
        "file_bytes": exported.file_bytes,
        "epochs": trained.epochs,
        "best_epoch": trained.best_epoch,
        "held_out": trained.held_out_accuracy,
        "minutes": trained.seconds / 60,
        "device": str(device),
        "seed": arguments.seed,
    }


def new_run(recipe: str, run: Path, arguments: argparse.Namespace) -> Student:
    """Convert the trained network with one recipe; this script's folder is where the factory is found."""
    return convert_model(str(arguments.weights), recipe, model="resnet20:resnet20", input_shape=(1, 3, 32, 32), out=run)


def converted_accuracy(student: Student, data: Data, device: torch.device) -> float:
    """Test accuracy of the student as converted, its batch norm re-estimated, measured on a copy."""
    assert student.run is not None
    fresh = copy.deepcopy(student.model)
    fresh.load_state_dict(load_file(student.run.file("student.safetensors")))
    fresh.to(device)
    prepare(fresh, calibration_batches(data, device))
    return accuracy(fresh, data, device)


def calibration_batches(data: Data, device: torch.device) -> Iterator[Tensor]:
    """Batches of training images as they are, the same each time."""
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    for indices in order[: CALIBRATION_BATCHES * CALIBRATION_BATCH].split(CALIBRATION_BATCH):
        images, _ = data.train.batch(indices)
        yield normalise(images.to(device), data.mean, data.std)


def accuracy(model: nn.Module, data: Data, device: torch.device) -> float:
    """Top-1 accuracy on the test images; the model ends on the CPU."""
    assert data.test is not None
    model.to(device).eval()
    with torch.no_grad():
        measured = evaluate_samples(model, data.test, data, device=device)
    model.cpu()
    return measured.accuracy


def table(results: list[dict[str, Any]]) -> Table:
    """One row per recipe."""
    titles = ("float", "converted", "fine-tuned", "packed", "agreement", "unexplained")
    sizes = ("float bytes", "file bytes", "epochs", "minutes")
    rows = tuple(
        (
            f"`{r['recipe']}`",
            *(f"{100 * r[key]:.2f} %" for key in ("float", "converted", "fine_tuned", "packed")),
            f"{100 * r['agreement']:.2f} %",
            str(r["unexplained_samples"]),
            f"{r['float_bytes']:,}",
            f"{r['file_bytes']:,}",
            str(r["epochs"]),
            f"{r['minutes']:.0f}",
        )
        for r in results
    )
    return Table("CIFAR-10", (Column("recipe"), *map(number, titles + sizes)), rows)


def arguments_of(line: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="image folder: train/CLASS/*.jpg and test/CLASS/*.jpg")
    parser.add_argument("--weights", type=Path, required=True, help="state dict of the float ResNet-20")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, packed files and results")
    parser.add_argument("--recipes", default=",".join(RECIPES), help="names with commas, in the order of the work")
    parser.add_argument("--epochs", type=int, help="default: each recipe's own")
    parser.add_argument("--device", help="cpu, cuda or cuda:N; default: a GPU if there is one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of the packed session")
    return parser.parse_args(line)


def main(line: list[str] | None = None) -> None:
    """Do what is not done yet, then print the table."""
    arguments = arguments_of(line)
    arguments.out.mkdir(parents=True, exist_ok=True)
    data: Data | None = None
    results = []
    for recipe in arguments.recipes.split(","):
        file = arguments.out / f"{recipe}.json"
        if not file.exists():
            data = data or load_data(arguments.data, mean=MEAN, std=STD)
            write_text(file, json.dumps(measure(recipe, data, arguments), indent=2) + "\n")
        results.append(json.loads(file.read_text()))
        print(table(results).markdown(), flush=True)


if __name__ == "__main__":
    main()
