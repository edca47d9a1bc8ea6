"""The steps of quickstart.sh that are no bnnconvert command: train a float model, and print what came out.

python quickstart.py train     -> model.pt, a state dict, and float.json
python quickstart.py table     reads the JSON that the commands left in this folder
"""

import json
import sys
from pathlib import Path

import torch
from digits_net import build
from torch.nn import functional as F

import bnnconvert
from bnnconvert.load.data import load_data
from bnnconvert.values.data import normalise

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
            # Shifted by up to a pixel, as fine-tuning will show them to the teacher.
            up, left = torch.randint(-1, 2, (2,)).tolist()
            images = images.roll((up, left), dims=(2, 3))
            loss = F.cross_entropy(model(normalise(images, data.mean, data.std)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    torch.save(model.state_dict(), "model.pt")
    report = bnnconvert.evaluate(model, data)
    Path("float.json").write_text(json.dumps({"accuracy": report.accuracy, "samples": report.samples}))
    print(f"model.pt: {report.accuracy:.2%} of {report.samples} test images")


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
    {"train": train, "table": table}[sys.argv[1]]()
