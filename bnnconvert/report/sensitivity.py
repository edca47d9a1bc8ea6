"""What each layer costs, as a table and as a plot."""

from pathlib import Path

from bnnconvert.report.figure import new_figure
from bnnconvert.report.table import Column, Table, number
from bnnconvert.report.units import as_count, as_percent
from bnnconvert.values.sensitivity import SensitivityReport


def sensitivity_table(report: SensitivityReport) -> Table:
    """One row per binary layer, the most costly first; drops in points of the teacher's accuracy."""
    titles = ("divergence", "drop", "float: divergence", "float: gain", "saved B", "mult-adds")
    rows = tuple(
        (
            x.layer,
            f"{x.alone_binary.divergence:.4f}",
            f"{100 * (report.teacher_accuracy - x.alone_binary.accuracy):.2f}",
            f"{x.alone_float.divergence:.4f}",
            f"{100 * (x.alone_float.accuracy - report.binary.accuracy):.2f}",
            f"{x.float_bytes - x.packed_bytes:,}",
            as_count(x.macs),
        )
        for x in sorted(report.layers, key=lambda x: -x.alone_binary.divergence)
    )
    return Table(f"Sensitivity: {report.target}, recipe {report.recipe}", (Column("layer"), *map(number, titles)), rows)


def sensitivity_notes(report: SensitivityReport) -> list[str]:
    """What the columns are."""
    teacher, binary = as_percent(report.teacher_accuracy), as_percent(report.binary.accuracy)
    whole = (
        f"On {report.samples:,} training images: the float model {teacher}, the student as it stands {binary}, "
        f"divergence {report.binary.divergence:.4f}."
    )
    columns = (
        "Divergence and drop: this layer alone is binary; float: this layer alone is float. Batch norm is re-estimated "
        "each time and nothing is trained, so the numbers rank layers."
    )
    return [whole, columns]


def plot_sensitivity(report: SensitivityReport, path: Path) -> None:
    """Divergence of each layer alone, in the order of the network, as a picture.

    Raises: UsageError where matplotlib is not installed.
    """
    figure = new_figure(width=max(6, 0.4 * len(report.layers)), height=4.5)
    axes = figure.subplots()
    names = [x.layer for x in report.layers]
    axes.bar(names, [x.alone_binary.divergence for x in report.layers], label="alone binary")
    axes.axhline(report.binary.divergence, color="grey", linestyle="--", linewidth=1, label="all binary")
    axes.plot(names, [x.alone_float.divergence for x in report.layers], "o", color="tab:orange", label="alone float")
    axes.set_ylabel("divergence from the float model, nats")
    axes.set_yscale("symlog", linthresh=0.01)
    axes.tick_params(axis="x", rotation=90)
    axes.legend()
    figure.savefig(path, dpi=150, format="png")
