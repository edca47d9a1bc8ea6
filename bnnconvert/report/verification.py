"""How a session compares with its student, layer by layer, and what that means."""

from bnnconvert.report.table import Column, Table, number
from bnnconvert.report.units import as_percent
from bnnconvert.values.report import GoldenReport, LayerFlips, VerifyReport


def flips_table(report: VerifyReport) -> Table:
    """Input bits of each binary layer in which session and student differ."""
    columns = (
        Column("layer"),
        number("input bits"),
        number("flips"),
        number("at a boundary"),
        number("first of a sample"),
        number("at a boundary"),
        number("accumulators"),
        number("inexact"),
    )
    rows = tuple((f.layer, *(f"{count:,}" for count in _counts(f))) for f in report.layers)
    return Table("Session against student", columns, rows)


def _counts(flips: LayerFlips) -> tuple[int, ...]:
    return (
        flips.bits,
        flips.flips,
        flips.boundary,
        flips.first,
        flips.first_boundary,
        flips.accumulators,
        flips.inexact,
    )


def verify_notes(report: VerifyReport) -> list[str]:
    """What the flips mean."""
    flips, bits = sum(f.flips for f in report.layers), sum(f.bits for f in report.layers)
    notes = [
        (
            f"{report.samples:,} samples: {report.counted} in {as_percent(report.agreement, 3)}, largest output "
            f"difference {report.largest_difference:.3g}."
        )
    ]
    if flips:
        notes.append(
            f"{flips:,} of {bits:,} input bits differ. A flip at a boundary is a float value within rounding of a "
            "sign's threshold; after its first flip a sample is on another path, and its later bits may differ freely."
        )
    else:
        notes.append(f"All {bits:,} input bits of the binary layers agree.")
    accumulators, inexact = (sum(getattr(f, n) for f in report.layers) for n in ("accumulators", "inexact"))
    if not inexact:
        notes.append(f"Given the same input bits every binary layer is exact: {accumulators:,} accumulators compared.")
    if report.isa is not None:
        differ = (
            f"differs in {report.engine_differing:,} samples, {report.engine_unexplained:,} of them without a reason"
        )
        notes.append(f"The native engine ({report.isa}) {differ if report.engine_differing else 'agrees'}.")
    if report.passed and report.differing_samples:
        differing = f"{report.differing_samples:,} samples differ in their outputs"
        notes.append(f"Passed: {differing}, and rounding at a sign boundary explains every one.")
    elif report.passed:
        notes.append("Passed: no sample differs in its outputs.")
    return notes


def golden_notes(report: GoldenReport) -> list[str]:
    """What the golden input showed."""
    return [
        (
            "Passed: the file is whole, and its golden input gives its golden output (largest difference "
            f"{report.largest_difference:.3g})."
        ),
        "That proves the file. With --against RUN it is compared with the student, layer by layer.",
    ]
