"""What the examples of segmentation and detection share: digits for scenes, the float network, the way to a file."""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

import bnnconvert
from bnnconvert.load.data import load_data
from bnnconvert.tasks import Task
from bnnconvert.values.data import Data, normalise

BATCH = 32
Scenes = TypeVar("Scenes")


def of_digits(make: Callable[..., Scenes], counts: dict[str, int]) -> tuple[Scenes, Scenes]:
    """Training and test scenes, of training and test digits."""
    data = load_data("digits")
    assert data.test is not None
    made = []
    for seed, (name, part) in enumerate({"train": data.train, "test": data.test}.items()):
        images, labels = part.batch(torch.arange(len(part)))
        made.append(make(images, labels, counts[name], seed=seed))
    return made[0], made[1]


def trained(net: nn.Module, data: Data, loss_of: Callable[[Tensor, Tensor], Tensor], *, epochs: int) -> nn.Module:
    """The float network, from scratch."""
    images, targets = data.train.batch(torch.arange(len(data.train)))
    x = normalise(images, data.mean, data.std)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    steps = epochs * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for epoch in range(epochs):
        for batch in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            loss = loss_of(net(x[batch]), targets[batch])
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"float network, epoch {epoch + 1} of {epochs}: loss {loss.item():.3f}", flush=True)
    return net.eval()


def packed(net: nn.Module, data: Data, task: Task, *, recipe: str, epochs: int, path: Path) -> dict[str, float]:
    """Convert, fine-tune, export; the score of each form on the test scenes, and bytes."""
    student = bnnconvert.convert(net, recipe, input_shape=(1, *data.sample_shape))
    tuned = bnnconvert.finetune(student, data, task=task.name, epochs=epochs, batch_size=BATCH)
    print(f"student: held-out {task.metric} {tuned.start_accuracy:.3f} before, {tuned.held_out_accuracy:.3f} after")
    bnnconvert.export(student, path)
    forms = {"float": net, "student": student, "packed": path}
    found = {name: bnnconvert.evaluate(form, data, task=task.name).accuracy for name, form in forms.items()}
    float_bytes = sum(p.numel() * 4 for p in net.parameters())
    return {**found, "float bytes": float_bytes, "file bytes": path.stat().st_size}


def command(main: Callable[..., dict[str, float]], about: str | None, metric: str, *, epochs: int) -> None:
    """The command line of an example."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="reactnet")
    parser.add_argument("--epochs", type=int, default=epochs)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        for name, value in main(recipe=given.recipe, epochs=given.epochs, folder=Path(place)).items():
            print(f"{name}: {value:,.0f}" if "bytes" in name else f"{name}: {metric} {value:.4f}")
