"""The steps of quickstart.sh that are no bnnconvert command: train a float model, and print what came out.

python quickstart.py train        -> model.pt, a state dict, and float.json
python quickstart.py converted    -> converted.json, the newest run's student with its batch norm re-estimated
python quickstart.py table        reads the JSON that these and the commands left in this folder
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from digits_net import build
from torch.nn import functional as F

import bnnconvert
from bnnconvert.load.data import load_data
from bnnconvert.train import prepare
from bnnconvert.values.data import Data, normalise

EPOCHS, BATCH = 15, 64


def train() -> None:
    """Train the float network on the digits; a few seconds on a CPU."""
    torch.manual_seed(0)
    data, model = load_data("digits"), build()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    batches = len(data.train) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=EPOCHS * batches)
    for _ in range(EPOCHS):
        order = torch.randperm(len(data.train))[: batches * BATCH]
        for indices in order.split(BATCH):
            images, labels = data.train.batch(indices)
            loss = F.cross_entropy(model(normalise(images, data.mean, data.std)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    torch.save(model.state_dict(), "model.pt")
    print(f"model.pt: {write_accuracy(model, data, 'float.json'):.2%} of the test images")


def converted() -> None:
    """Measure the student before any training; its batch norm has seen the training images, as finetune begins."""
    data, student = load_data("digits"), bnnconvert.open_run()
    images, _ = data.train.batch(torch.arange(len(data.train)))
    prepare(student.model, normalise(images, data.mean, data.std).split(BATCH))
    write_accuracy(student, data, "converted.json")


def write_accuracy(target: Any, data: Data, file: str) -> float:
    """Accuracy on the test images, written to a file."""
    report = bnnconvert.evaluate(target, data)
    Path(file).write_text(json.dumps({"accuracy": report.accuracy, "samples": report.samples}))
    return report.accuracy


def table() -> None:
    """Print accuracies, sizes and agreement as one table."""
    stages = {"float": "model.pt", "converted": "", "fine-tuned": "", "packed": "model.packed.safetensors"}
    print(f"\n{'':12}{'accuracy':>10}{'file bytes':>12}")
    for stage, file in stages.items():
        measured = json.loads(Path(f"{stage}.json").read_text())
        size = f"{Path(file).stat().st_size:,}" if file else ""
        print(f"{stage:12}{measured['accuracy']:>10.2%}{size:>12}")
    compared = json.loads(Path("verify.json").read_text())
    print(
        f"\npacked and fine-tuned model agree on {compared['agreement']:.2%} of {compared['samples']} test images; "
        f"{compared['unexplained_samples']} differences are unexplained"
    )


if __name__ == "__main__":
    {"train": train, "converted": converted, "table": table}[sys.argv[1]]()
