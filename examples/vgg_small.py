"""VGG-small at half its width for grey images of 28x28: a factory, and its training.

The factory is for `--model vgg_small:vgg_small`.

python examples/vgg_small.py --data FASHION_MNIST --out vgg_small.safetensors [--epochs 12]

The command may be stopped at any moment and typed again: it goes on from its checkpoint in the folder OUT.run.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from bnnconvert.load.data import load_data
from bnnconvert.report.training import epoch_line
from bnnconvert.trace.tracer import trace
from bnnconvert.train import evaluate_samples, finetune
from bnnconvert.train.memory import keep_freed_memory
from bnnconvert.values.progress import Silent
from bnnconvert.values.recipe import Loss, Optimizer, Training
from bnnconvert.values.report import EpochRecord

WIDTHS = (64, 64, 128, 128, 256, 256)
"""Half of what the literature has, as an epoch of the whole one takes half an hour of a CPU core."""


def vgg_small() -> nn.Sequential:
    """Three times two 3x3 convolutions and a pool, then one linear layer."""
    layers: list[nn.Module] = []
    channels = 1
    for number, width in enumerate(WIDTHS):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        if number % 2:
            layers.append(nn.MaxPool2d(2))
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 9, 10))


class EpochLines(Silent):
    """Prints a line per epoch."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def epoch(self, record: EpochRecord) -> None:
        """Tell how the epoch ended."""
        print(epoch_line(record, self.epochs), flush=True)


def main(line: list[str] | None = None) -> None:
    """Train with the labels and save the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with the IDX files of Fashion-MNIST")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--mixed-precision", choices=("no", "fp16", "bf16"), default="no")
    arguments = parser.parse_args(line)
    keep_freed_memory()
    torch.manual_seed(arguments.seed)
    data = load_data(arguments.data)
    net = trace(vgg_small(), (torch.zeros(2, 1, 28, 28),))
    training = Training(
        epochs=arguments.epochs,
        batch_size=64,
        optimizer=Optimizer(name="sgd", lr=0.05, weight_decay=5e-4),
        losses=[Loss(name="cross-entropy")],
    )
    folder = arguments.out.with_suffix(".run")
    folder.mkdir(parents=True, exist_ok=True)
    finetune(
        net,
        None,
        data,
        training,
        folder=folder,
        seed=arguments.seed,
        augment="crop-flip",
        resume=True,
        max_steps=arguments.max_steps,
        mixed_precision=arguments.mixed_precision,
        progress=EpochLines(arguments.epochs),
    )
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, arguments.out)
    assert data.test is not None
    print(f"{arguments.out}: {evaluate_samples(net, data.test, data).accuracy:.2%} of the test images")


if __name__ == "__main__":
    main()
