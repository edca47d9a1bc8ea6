"""What an export wrote, predicted and actual bytes side by side."""

from bnnconvert.report.table import Column, Table, number
from bnnconvert.report.units import as_bytes, as_count, as_percent, as_ratio
from bnnconvert.values.report import ExportReport, PredictionReport


def sizes_table(report: ExportReport) -> Table:
    """Bytes of the parts of the file. The header and the golden samples were not part of the prediction."""
    columns = (Column("part"), number("predicted bytes"), number("actual bytes"))
    rows = (
        ("tensors", f"{report.predicted_bytes:,}", f"{report.tensor_bytes:,}"),
        ("golden input and output", "", f"{report.golden_bytes:,}"),
        ("header: program, metadata", "", f"{report.header_bytes:,}"),
    )
    return Table("Sizes", columns, rows, ("file", "", f"{report.file_bytes:,}"))


def layers_table(report: ExportReport) -> Table:
    """Bytes of each binary layer."""
    columns = (Column("layer"), number("binary weights"), number("weight bytes"), number("other bytes"))
    rows = tuple(
        (part.layer, f"{part.binary_weights:,}", f"{part.weight_bytes:,}", f"{part.other_bytes:,}")
        for part in report.layers
    )
    sums = (
        sum(p.binary_weights for p in report.layers),
        sum(p.weight_bytes for p in report.layers),
        sum(p.other_bytes for p in report.layers),
    )
    return Table("Binary layers", columns, rows, ("all", *(f"{s:,}" for s in sums)))


def predictions_table(report: PredictionReport) -> Table:
    """What the predictors of float layers save and miss. Multiply-adds are those of one sample."""
    columns = (Column("layer"), number("float mult-adds"), number("avoided"), number("positive outputs missed"))
    rows = tuple(
        (layer.layer, as_count(layer.macs), as_percent(layer.avoided), as_percent(layer.missed))
        for layer in report.layers
    )
    macs = sum(layer.macs for layer in report.layers)
    avoided = sum(layer.macs * layer.avoided for layer in report.layers)
    total = ("all", as_count(macs), as_percent(avoided / max(1, macs)), "")
    return Table("Predicted layers", columns, rows, total)


def export_notes(report: ExportReport) -> list[str]:
    """What was proved, and the gain."""
    notes = [
        (
            f"{report.path}: opened again in a fresh session and compared with the student; largest difference "
            f"{report.golden_difference:.3g}."
        )
    ]
    if report.float_bytes:
        ratio = as_ratio(report.float_bytes, report.file_bytes)
        change = f": {ratio}" if ratio else ""
        notes.append(f"Float model {as_bytes(report.float_bytes)}, file {as_bytes(report.file_bytes)}{change}.")
    if report.edges is not None:
        e = report.edges
        notes.append(
            f"8 bits in {' and '.join(e.layers)}: {as_percent(e.accuracy_float)} of {e.samples:,} {e.split} samples "
            f"become {as_percent(e.accuracy_int8)}, as {as_percent(e.flipped)} of the first binary layer's input bits "
            "flip."
        )
    if report.predictions is not None:
        p = report.predictions
        notes.append(
            f"Predictors: {as_percent(p.accuracy_dense)} of {p.samples:,} {p.split} samples become "
            f"{as_percent(p.accuracy_predicted)}."
        )
    return notes
