"""What a student's training step costs: against the float model's step, without and with the teacher.

python examples/step_time.py [--recipes xnor,reactnet] [--batch 128] [--threads 2] [--rounds 20] [--json]

One step is forward, loss, backward and optimizer. The three kinds of step take turns, so that whatever else the
machine does hits all of them alike; the ratio is that of the medians, the spread half the interquartile range.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from resnet20 import resnet20
from torch import nn
from torch.nn import functional as F

import bnnconvert
from bnnconvert.recipe import load_recipe, recipe_names
from bnnconvert.report.table import Column, Table, number
from bnnconvert.train import clip_latent
from bnnconvert.train.layout import keep_gradient_layout, use_layout
from bnnconvert.train.memory import keep_freed_memory
from bnnconvert.train.objective import Objective
from bnnconvert.train.optimizers import make_optimizer
from bnnconvert.values.recipe import Loss, Recipe

Step = Callable[[], object]
WARM_UP = 3


def steps_of(recipe: Recipe, batch: int) -> dict[str, Step]:
    """The kinds of step on the same batch: `float`, `student` and `student with teacher`."""
    torch.manual_seed(0)
    x, labels = torch.randn(batch, 3, 32, 32), torch.arange(batch) % 10
    x = x.contiguous(memory_format=torch.channels_last)
    teacher = resnet20().eval()
    student = bnnconvert.convert(teacher, recipe, input_shape=(1, 3, 32, 32))
    plain = Objective([Loss(name="cross-entropy")], student.model, None, device=x.device)
    full = Objective(recipe.training.losses, student.model, student.teacher, device=x.device)
    ours = trainer(student.model, recipe)
    net = resnet20()
    theirs = trainer(net, recipe)
    return {
        "float": lambda: theirs(F.cross_entropy(net(x), labels)),
        "student": lambda: ours(plain(student.model, x, labels, progress=0.0, check=False).loss),
        "student with teacher": lambda: ours(full(student.model, x, labels, progress=0.0, check=False).loss),
    }


def trainer(model: nn.Module, recipe: Recipe) -> Callable[[torch.Tensor], None]:
    """The second half of a step, from the loss on."""
    use_layout(model, torch.channels_last)
    keep_gradient_layout(model)
    model.train()
    optimizer = make_optimizer(model, recipe.training.optimizer)

    def step(loss: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clip_latent(model)

    return step


def interleaved(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every step, the kinds taking turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number_of_round in range(WARM_UP + rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if number_of_round >= WARM_UP:
                times[name].append(1000 * (time.perf_counter() - start))
    return times


def summary(times: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, spreads and ratios to the float step. Units: milliseconds."""
    result: dict[str, Any] = {}
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        result[name] = {"median": median, "spread": (high - low) / 2}
    for name in ("student", "student with teacher"):
        result[name]["ratio"] = result[name]["median"] / result["float"]["median"]
    return result


def table(results: dict[str, dict[str, Any]]) -> Table:
    """One row per recipe."""
    columns = (Column("recipe"), *map(number, ("float ms", "student ms", "ratio", "with teacher ms", "ratio")))
    rows = []
    for recipe, found in results.items():
        cells = [f"{found['float']['median']:.1f} ± {found['float']['spread']:.1f}"]
        for name in ("student", "student with teacher"):
            cells += [f"{found[name]['median']:.1f} ± {found[name]['spread']:.1f}", f"{found[name]['ratio']:.2f}"]
        rows.append((f"`{recipe}`", *cells))
    return Table("Training step", columns, tuple(rows))


def main(line: list[str] | None = None) -> None:
    """Time every recipe and print the table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default=",".join(recipe_names()))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(line)
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as `bnnconvert finetune` does
    names = arguments.recipes.split(",")
    results = {
        name: summary(interleaved(steps_of(load_recipe(name), arguments.batch), arguments.rounds)) for name in names
    }
    print(json.dumps(results, indent=2) if arguments.json else table(results).markdown())


if __name__ == "__main__":
    main()
