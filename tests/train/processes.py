"""A run as one of several processes: writes what each ends with, to be compared."""

import json
import os
import sys
from pathlib import Path

import torch

from tests.train.toys import FITTED, STAGES, make_data, make_student, make_teacher, make_ternary_student, run

EXACT = {"optimizer": {"name": "sgd", "lr": 0.01}, "warmup": 0.0, "validation_share": 0.21}
"""Gradients are averaged in another order, so nothing that amplifies a rounding error: no Adam, no batch norm."""


def plain(folder: Path | None) -> tuple[torch.nn.Module, float]:
    """A run whose result does not depend on the number of processes."""
    student, report = run(folder, student=make_student(norm=False, drop=0.0), training=EXACT, max_steps=6)
    return student, report.held_out_accuracy


def staged(folder: Path | None) -> tuple[torch.nn.Module, float]:
    """A run with batch norm, and stages of which one leaves a learned gain unused."""
    stages = [{"share": 0.34, "inputs": False}, *STAGES[1:]]
    student, report = run(
        folder,
        student=make_student(gain=True),
        data=make_data(samples=125),
        training={"stages": stages},
        checkpoint_seconds=0.0,
    )
    return student, report.held_out_accuracy


def joint(folder: Path | None) -> tuple[torch.nn.Module, float]:
    """A run from scratch whose teacher trains along."""
    losses = [{"name": "cross-entropy"}, {"name": "mutual", "weight": 0.5}]
    student, report = run(
        folder,
        student=make_student(norm=False, drop=0.0),
        teacher=make_teacher(norm=False, drop=0.0),
        training=EXACT | {"losses": losses, "teacher": "joint", "start": "scratch"},
        max_steps=6,
    )
    return student, report.held_out_accuracy


def margin(folder: Path | None) -> tuple[torch.nn.Module, float]:
    """A run whose loss gathers the centres of the classes."""
    losses = [{"name": "cross-entropy"}, {"name": "rotation-margin", "scale": 4.0}]
    student, report = run(
        folder,
        student=make_student(norm=False, drop=0.0),
        teacher=make_teacher(norm=False, drop=0.0),
        training=EXACT | {"losses": losses},
        max_steps=6,
    )
    return student, report.held_out_accuracy


def fitted(folder: Path | None) -> tuple[torch.nn.Module, float]:
    """A run whose weights are fitted layer by layer, each process by itself."""
    student, report = run(folder, student=make_ternary_student(), training={"stages": FITTED})
    return student, report.held_out_accuracy


RUNS = {"plain": plain, "staged": staged, "joint": joint, "margin": margin, "fitted": fitted}


if __name__ == "__main__":
    out, rank = Path(sys.argv[1]), os.environ.get("RANK", "0")
    for name, made in RUNS.items():
        student, accuracy = made(out / name)
        torch.save(student.state_dict(), out / f"{name}-{rank}.pt")
        (out / f"{name}-{rank}.json").write_text(json.dumps(accuracy))
