"""What a student's training step costs: against the float model's step, without and with the teacher.

python examples/step_time.py [--recipes xnor,reactnet] [--batch 128] [--threads 2] [--rounds 20] [--json]

One step is forward, loss, backward and optimizer. The three kinds of step take turns, so that whatever else the
machine does hits all of them alike; the ratio is that of the medians, the spread half the interquartile range.
"""

import argparse
import json
from dataclasses import asdict

import torch
from resnet20 import resnet20

import bnnconvert
from bnnconvert.recipe import load_recipe, recipe_names
from bnnconvert.report.table import Column, Table, number
from bnnconvert.train.cost import StepCost, step_cost
from bnnconvert.train.memory import keep_freed_memory

TITLES = ("float ms", "student ms", "ratio", "with teacher ms", "ratio")


def cost_of(name: str, batch: int, rounds: int) -> StepCost:
    """Cost of a recipe's step on a ResNet-20."""
    torch.manual_seed(0)
    x, labels = torch.randn(batch, 3, 32, 32), torch.arange(batch) % 10
    recipe = load_recipe(name)
    student = bnnconvert.convert(resnet20().eval(), recipe, input_shape=(1, 3, 32, 32))
    return step_cost(student.model, student.teacher, recipe.training, x, labels, rounds=rounds)


def table(costs: dict[str, StepCost]) -> Table:
    """One row per recipe."""
    rows = []
    for name, cost in costs.items():
        medians = (cost.original, cost.student, cost.with_teacher)
        first, second, third = (
            f"{1000 * m:.1f} ± {1000 * spread:.1f}" for m, spread in zip(medians, cost.spreads, strict=True)
        )
        rows.append((f"`{name}`", first, second, f"{cost.student / cost.original:.2f}", third, f"{cost.ratio:.2f}"))
    return Table("Training step", (Column("recipe"), *map(number, TITLES)), tuple(rows))


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
    costs = {name: cost_of(name, arguments.batch, arguments.rounds) for name in arguments.recipes.split(",")}
    if arguments.json:
        print(json.dumps({name: asdict(cost) | {"ratio": cost.ratio} for name, cost in costs.items()}, indent=2))
        return
    print(table(costs).markdown())


if __name__ == "__main__":
    main()
