"""A fine-tuning run in words and as a table."""

from bnnconvert.report.table import Table, number
from bnnconvert.report.units import as_duration, as_percent
from bnnconvert.values.report import EpochRecord, TrainReport


def epochs_table(report: TrainReport) -> Table:
    """One row per epoch; flips and dead channels over all binary layers."""
    titles = ("epoch", "stage", "loss", "train", "held out", "rate", "flips", "dead channels", "time")
    return Table("Epochs", tuple(map(number, titles)), tuple(map(_row, report.history)))


def epoch_line(record: EpochRecord, epochs: int) -> str:
    """One epoch in a line."""
    return (
        f"epoch {record.epoch}/{epochs}  loss {record.loss:.4f}  train {as_percent(record.train_accuracy)}  "
        f"held out {as_percent(record.held_out_accuracy)}  {as_duration(record.seconds)}"
    )


def training_notes(report: TrainReport) -> list[str]:
    """What the run came to."""
    best = f"the best weights are those of epoch {report.best_epoch} of {report.epochs}"
    if report.members > 1:
        best = f"{report.members} members were trained, {report.epochs} epochs in all"
    return [
        (
            f"Held-out {report.metric} {as_percent(report.held_out_accuracy)}, before the first step "
            f"{as_percent(report.start_accuracy)}; {best}."
        ),
        (
            f"{report.steps:,} steps on {report.samples:,} samples, {report.held_out_samples:,} held out, "
            f"in {as_duration(report.seconds)}."
        ),
    ]


def _row(record: EpochRecord) -> tuple[str, ...]:
    flips = list(record.flip_ratio.values())
    dead = sum(d.minus + d.plus for d in record.dead_channels.values())
    channels = sum(d.channels for d in record.dead_channels.values())
    return (
        str(record.epoch),
        str(record.stage),
        f"{record.loss:.4f}",
        as_percent(record.train_accuracy),
        as_percent(record.held_out_accuracy),
        f"{record.lr:.2e}",
        as_percent(sum(flips) / len(flips)) if flips else "",
        f"{dead:,} of {channels:,}",
        as_duration(record.seconds),
    )
