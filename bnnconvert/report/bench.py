"""Speed as tables."""

from bnnconvert.report.table import Column, Table, number
from bnnconvert.report.units import as_time
from bnnconvert.values.report import BenchReport, PeerTime


def peers_table(report: BenchReport) -> Table:
    """One row per runtime that ran."""
    ours = report.peers[0].median
    columns = (Column("runtime"), number("median"), number("spread"), number("of ours"), number("difference"))
    rows = tuple(_row(peer, ours) for peer in report.peers if peer.median is not None)
    return Table(f"{report.artifact}, batch {report.batch}, {_threads(report)}", columns, rows)


def _row(peer: PeerTime, ours: float | None) -> tuple[str, ...]:
    assert peer.median is not None
    assert peer.spread is not None
    ratio = "" if ours is None else f"{peer.median / ours:.2f} x"
    difference = "" if peer.difference is None else f"{peer.difference:.1g}"
    return peer.title, as_time(peer.median), as_time(peer.spread), ratio, difference


def layers_table(report: BenchReport) -> Table:
    """One row per layer of the artifact."""
    columns = (Column("layer"), Column("kernel"), number("time"), number("float, torch"), number("of ours"))
    rows = tuple(
        (
            layer.name,
            layer.how,
            as_time(layer.seconds),
            "" if layer.float_seconds is None else as_time(layer.float_seconds),
            "" if layer.float_seconds is None else f"{layer.float_seconds / layer.seconds:.1f} x",
        )
        for layer in report.layers
    )
    total = ("sum", "", as_time(sum(layer.seconds for layer in report.layers)), "", "")
    return Table("Layer by layer", columns, rows, total)


def bench_notes(report: BenchReport) -> list[str]:
    """What was compared, what stayed away, and where binary loses."""
    engine = f"Native engine on {report.isa}" if report.isa else "Portable engine, as there is no native one"
    notes = [f"{engine}; {report.rounds} rounds in turns; golden output {report.golden_difference:.1g} off."]
    notes += [f"{peer.title}: {peer.failure}." for peer in report.peers if peer.failure is not None]
    if report.slow_layers:
        notes.append(f"Quicker in float: {', '.join(report.slow_layers)}.")
    return notes


def _threads(report: BenchReport) -> str:
    return f"{report.threads} thread{'s' * (report.threads != 1)}"
