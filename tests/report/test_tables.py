"""Tables hold what their reports hold, and numbers read as people read them."""

import pytest

from bnnconvert.report.export import export_notes, predictions_table, sizes_table
from bnnconvert.report.plan import plan_notes, plan_table, rewrites_table
from bnnconvert.report.table import Column, Table, number
from bnnconvert.report.units import as_bytes, as_count, as_duration, as_percent, as_ratio, as_shape
from bnnconvert.report.verification import flips_table, verify_notes
from bnnconvert.values.inputs import specs_of
from bnnconvert.values.plan import LayerFacts, LayerPlan, Plan, RewriteRecord
from bnnconvert.values.report import ExportReport, LayerFlips, PredictedLayerReport, PredictionReport, VerifyReport


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (10_239, "10,239 B"),
        (10_240, "10,240 B (10.0 KiB)"),
        (1_048_576, "1,048,576 B (1.0 MiB)"),
        (None, "unknown"),
    ],
)
def test_bytes(count: int | None, text: str) -> None:
    assert as_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (99_999, "99,999"), (100_000, "0.1 M"), (40_600_000, "40.6 M"), (2 * 10**9, "2.0 G")]
)
def test_counts(count: int, text: str) -> None:
    assert as_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (3599.4, "59:59"), (3723, "1:02:03")]
)
def test_durations(seconds: float, text: str) -> None:
    assert as_duration(seconds) == text


def test_shares_ratios_and_shapes() -> None:
    assert as_percent(0.87421) == "87.42 %"
    assert as_ratio(300, 10) == "30.0 times smaller"
    assert as_ratio(10, 300) == as_ratio(10, 0) == ""
    assert as_shape((None, 3, 8)) == "Nx3x8"


def layer(path: str, *, binary: bool) -> LayerPlan:
    facts = LayerFacts(
        path=path,
        kind="conv2d",
        input_shape=(1, 3, 4, 4),
        output_shape=(1, 5, 4, 4),
        weight_shape=(5, 3, 3, 3),
        parameters=135,
    )
    return LayerPlan(facts=facts, decision="binary" if binary else "float", reason="because", rule=0)


PLAN = Plan(
    recipe="mine",
    inputs=specs_of((1, 3, 4, 4)),
    layers=(layer("a.b", binary=False), layer("a.c", binary=True)),
    rewrites=(RewriteRecord(name="turn", promise="EXACT", count=2, refusals=("a.d: too odd",)),),
    model_bytes=2000,
    predicted_bytes=1000,
)


def test_plan_has_a_row_per_layer_and_sums() -> None:
    table = plan_table(PLAN)
    assert table.rows[0] == ("a.b", "conv2d", "5x3x3x3", "float", "because", "540", "540", "2,160")
    assert table.rows[1] == ("a.c", "conv2d", "5x3x3x3", "binary", "because", "540", "20", "2,160")  # 27 bits: 4 bytes
    assert table.total == ("2 layers", "", "", "1 binary", "", "1,080", "560", "4,320")
    assert rewrites_table(PLAN).rows == (("turn", "EXACT", "2", "1"),)
    assert plan_notes(PLAN) == [
        "turn refused a.d: too odd",
        "50.0% of the multiply-adds are binary.",
        "The model takes 2,000 B, its packed tensors 1,000 B: 2.0 times smaller.",
    ]


def test_markdown() -> None:
    table = Table("t", (Column("a"), number("b")), (("x", "1"),), ("all", "1"))
    assert table.markdown() == "| a | b |\n| --- | --: |\n| x | 1 |\n| all | 1 |"


def test_predicted_layers_are_summed_by_their_multiply_adds() -> None:
    parts = (PredictedLayerReport("a", 300_000, 0.5, 0.01), PredictedLayerReport("b", 100_000, 0.1, 0.02))
    table = predictions_table(PredictionReport(parts, 10, "test", 0.9, 0.8))
    assert table.rows[0] == ("a", "0.3 M", "50.00 %", "1.00 %")
    assert table.total == ("all", "0.4 M", "40.00 %", "")


def test_export_shows_prediction_beside_result() -> None:
    report = ExportReport(
        path="m.packed.safetensors",
        predicted_bytes=100,
        tensor_bytes=100,
        golden_bytes=20,
        header_bytes=30,
        file_bytes=150,
        float_bytes=3000,
        golden_difference=0.0,
        layers=(),
    )
    assert sizes_table(report).rows[0] == ("tensors", "100", "100")
    assert sizes_table(report).total == ("file", "", "150")
    assert "20.0 times smaller" in export_notes(report)[1]


def flips(first: int, boundary: int, inexact: int = 0) -> VerifyReport:
    return VerifyReport(
        samples=10,
        agreement=1.0,
        largest_difference=0.5,
        differing_samples=1,
        unexplained_samples=int(first > boundary),
        layers=(LayerFlips("a.c", 1000, 3, boundary, first, boundary, 40, inexact),),
    )


def test_verification_says_what_flips_mean() -> None:
    passed, failed = flips(2, 2), flips(2, 1)
    assert flips_table(passed).rows == (("a.c", "1,000", "3", "2", "2", "2", "40", "0"),)
    assert verify_notes(passed)[-1].startswith("Passed: 1 samples differ")
    assert not any(line.startswith("Passed") for line in verify_notes(failed))
    assert "at a.c, 1 bits differ" in failed.failure


def test_inexact_accumulators_are_named_first() -> None:
    failed = flips(2, 1, inexact=7)
    assert not failed.passed
    assert "at a.c, 7 accumulators are inexact" in failed.failure
    assert not any("is exact" in line for line in verify_notes(failed))
    assert any("40 accumulators" in line for line in verify_notes(flips(2, 2)))
