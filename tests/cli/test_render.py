"""What is printed where: results on standard output, all else on standard error, and nothing read as markup."""

import json
import math

import pytest

from bnnconvert.cli import render
from bnnconvert.report.table import Column, Table
from bnnconvert.values.report import EpochRecord


def test_text_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    render.table(Table("[red]t", (Column("a"),), (("layer[0] [bold]x[/bold] :smile:",),)))
    render.lines(["[/nonsense] " + "long " * 100])
    out = capsys.readouterr().out
    assert "[red]t" in out
    assert "layer[0] [bold]x[/bold] :smile:" in out
    assert "long " * 99 in out


def test_notes_and_errors_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    render.note("a note")
    render.warning("careful")
    render.next_step("bnnconvert export")
    render.failure("it broke")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["a note", "Warning: careful", "Next: bnnconvert export", "Error: it broke"]


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    render.as_json({"a": (math.nan, 1.5), "b": {"c": math.inf}})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5], "b": {"c": None}}


def test_training_outside_a_terminal_is_a_line_per_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    record = EpochRecord(
        epoch=2,
        stage=1,
        step=8,
        loss=0.25,
        train_accuracy=0.5,
        held_out_accuracy=0.75,
        lr=0.1,
        seconds=3.2,
        flip_ratio={},
        dead_channels={},
    )
    with render.TrainingBar() as bar:
        bar.start(total_steps=8, done_steps=4, epochs=2)
        bar.step(step=5, loss=0.3, accuracy=0.4, seconds_left=9.0)
        bar.epoch(record)
        bar.note("odd")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "Going on after 4 of 8 steps.",
        "epoch 2/2  loss 0.2500  train 50.00 %  held out 75.00 %  3 s",
        "odd",
    ]
