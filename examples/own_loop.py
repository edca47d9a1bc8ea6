"""The student in a training loop of one's own: an ordinary module, five calls around it.

python examples/own_loop.py       on scikit-learn's digits, half a minute on a CPU
"""

import sys
import tempfile
from pathlib import Path

import torch
from digits_net import build
from torch.nn import functional as F

import bnnconvert
from bnnconvert.load.data import load_data
from bnnconvert.train import advance_schedules, clip_latent, parameter_groups, prepare, reestimate_batch_norm
from bnnconvert.values.data import normalise

BATCH = 64


def main(*, teacher_epochs: int = 10, epochs: int = 10, folder: Path | None = None) -> dict[str, float]:
    """Train a float network, convert it, train the student, export it; accuracies on the test images."""
    torch.manual_seed(0)
    data = load_data("digits")
    images, labels = data.train.batch(torch.arange(len(data.train)))
    x = normalise(images, data.mean, data.std)

    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(teacher_epochs):
        for batch in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), labels[batch]).backward()
            optimizer.step()

    student = bnnconvert.convert(model.eval(), recipe="reactnet", example_inputs=(x[:8],))
    net, settings = student.model, student.recipe.training
    prepare(net, x.split(BATCH))  # thresholds and batch norm start where the data are
    # Latent weights must not decay like others, and learned thresholds not at all: the groups know.
    optimizer = torch.optim.Adam(parameter_groups(net, settings.optimizer), lr=1e-3)
    for epoch in range(epochs):
        advance_schedules(net, epoch / epochs)  # a surrogate gradient may have a schedule
        net.train()
        for batch in torch.randperm(len(x)).split(BATCH):
            with torch.no_grad():
                target = student.teacher(x[batch]).softmax(dim=1)
            optimizer.zero_grad()
            F.cross_entropy(net(x[batch]), target).backward()
            optimizer.step()
            clip_latent(net)  # keeps latent weights where the method wants them
    reestimate_batch_norm(net, x.split(BATCH))

    path = Path(folder or ".") / "own_loop.packed.safetensors"
    bnnconvert.export(student, path)
    return {
        "float": bnnconvert.evaluate(model, data).accuracy,
        "student": bnnconvert.evaluate(student, data).accuracy,
        "packed": bnnconvert.evaluate(path, data).accuracy,
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        chosen = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary)
        for name, accuracy in main(folder=chosen).items():
            print(f"{name:8} {accuracy:.2%}")
