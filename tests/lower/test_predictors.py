"""Predictors of positive outputs: limits in closed form, dense where all is predicted, found again in a file."""

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from bnnconvert.errors import RefusalError
from bnnconvert.exporters.verify import verify
from bnnconvert.layers.predicted import Predictor
from bnnconvert.lower.deploy import deploy
from bnnconvert.lower.predictors import calibrate, histogram, limits, predictors_of, site_of, tallies, with_predictors
from bnnconvert.lower.program import lower
from bnnconvert.runtime.session import Session
from tests.sessions import complete
from tests.students import trace


def network() -> GraphModule:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 20, 3, 2, 1, groups=2, bias=False)
    return trace(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=2, dilation=2),
            nn.ReLU(),
            conv,
            nn.BatchNorm2d(20),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(320, 9),
            nn.BatchNorm1d(9),
            nn.ReLU6(),
            nn.Linear(9, 4),
        )
    )


PATHS = ["0", "2", "6"]


def batches(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, 8, 8, generator=generator) for _ in range(count)]


def always(student: GraphModule, data: list[Tensor]) -> dict[str, Predictor]:
    """Predictors that let everything pass."""
    found = calibrate(student, dict.fromkeys(PATHS, 0.0), data)
    lowest = {p: torch.full_like(f.limits, -student.get_submodule(p).weight[0].numel()) for p, f in found.items()}
    return {path: Predictor(predictor.thresholds, lowest[path]) for path, predictor in found.items()}


def test_limits_in_closed_form():
    positive = torch.tensor([[0, 2, 3, 5, 0], [0, 0, 0, 0, 0], [4, 0, 0, 0, 4]])  # of the sums -2 ... 2
    assert limits(positive, 0.0).tolist() == [-1, 3, -2]
    assert limits(positive, 0.2).tolist() == [0, 3, -2]
    assert limits(positive, 0.49).tolist() == [0, 3, -2]
    assert limits(positive, 0.5).tolist() == [1, 3, 2]


def test_positive_outputs_are_counted_by_sum():
    sums = torch.tensor([[[-2.0, 0.0, 0.0]], [[2.0, 1.0, 1.0]]]).transpose(0, 1)
    positive = torch.tensor([[[True, True, False]], [[True, True, True]]]).transpose(0, 1)
    assert histogram(sums, positive, 5).tolist() == [[1, 0, 1, 0, 0], [0, 0, 0, 2, 1]]


def test_where_everything_is_predicted_the_output_is_the_dense_one():
    student, data = network(), batches()
    made = with_predictors(student, always(student, data))
    for x in data:
        torch.testing.assert_close(made(x), student(x), rtol=1e-5, atol=1e-5)


def test_no_channel_misses_more_than_its_share_of_the_calibration_data():
    student, data = network(), batches()
    for share in (0.0, 0.1):
        first = {"0": calibrate(student, {"0": share}, data)["0"]}
        made, x = with_predictors(student, first), torch.cat(data)
        z, y = student.get_submodule("0")(x), made.get_submodule("0.map")
        mask = made.get_submodule("0.mask")(made.get_submodule("0.predictor")(x))
        missed = ((z > 0) & ~mask).sum((0, 2, 3)) / (z > 0).sum((0, 2, 3))
        assert missed.max() <= share
        assert (missed.max() > 0) == (share > 0)
        assert not mask.all()
        torch.testing.assert_close(y(x, mask), torch.where(mask, z, 0.0))


def test_a_layer_without_positive_outputs_multiplies_nothing():
    student, data = network(), batches()
    with torch.no_grad():
        student.get_submodule("0").bias.fill_(-100.0)
    made = with_predictors(student, calibrate(student, {"0": 0.0}, data))
    tally = tallies(made, ["0"], data)["0"]
    assert (tally.computed, tally.positive, tally.missed, tally.outputs) == (0, 0, 0, 24 * 6 * 64)
    assert torch.equal(made(data[0]), student(data[0]))


def test_missed_outputs_are_counted():
    student = trace(nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU()))
    with torch.no_grad():
        student.get_submodule("0").weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    made = with_predictors(student, {"0": Predictor(torch.zeros(2), torch.tensor([2, 0]))})
    # Sums of signs: 2, 0 and 0, 0; so the first channel's second output, which is positive, is missed.
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0], [-3.0, 1.0]])
    assert made(x).tolist() == [[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]
    tally = tallies(made, ["0"], [x])["0"]
    assert (tally.outputs, tally.positive, tally.missed, tally.computed) == (6, 3, 1, 3)


def test_a_file_computes_what_its_student_does_and_tells_its_predictors():
    student, data = network(), batches()
    found = calibrate(student, {"0": 0.05, "2": 0.0, "6": 0.1}, data)
    found["0"].limits[:2] = torch.tensor([-27, 28])  # always and never
    made = with_predictors(student, found)
    session = Session(complete(made, data[0]))
    masked = [n for n, node in enumerate(session.program.nodes) if node.op.startswith("bnnconvert.masked_")]
    # A masked convolution with groups runs outside the engine.
    places = ["engine", "numpy", "engine"] if session.isa else ["numpy"] * 3
    assert [session.executor.place(number) for number in masked] == places
    report = verify(made, session, data)
    assert report.passed
    assert report.differing_samples == 0
    assert {layer.layer for layer in report.layers} == {f"{path}.predictor" for path in PATHS}
    again = with_predictors(student, predictors_of(session.program, session.artifact.tensors))
    for x in data:
        assert torch.equal(again(x), made(x))


def test_sums_are_compared_with_integers():
    student, data = network(), batches()
    made = with_predictors(student, calibrate(student, dict.fromkeys(PATHS, 0.05), data))
    program, tensors = lower(deploy(made, data[0]), data[0])
    calls = [node for node in program.nodes if node.op.startswith("bnnconvert.")]
    assert [node.layer for node in calls] == [name for p in PATHS for name in (f"{p}.predictor",) * 2 + (p,) * 2]
    masks = [node for node in calls if node.op == "bnnconvert.encode" and node.layer in PATHS]
    assert {tensors[node.arguments["thresholds"].tensor].dtype.name for node in masks} == {"int32"}


@pytest.mark.parametrize(
    ("layers", "why"),
    [
        ([nn.Conv2d(3, 4, 3)], "does not go into a ReLU"),
        ([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid()], "does not go into a ReLU"),
        ([nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.ReLU()], "does not go into a ReLU"),
        ([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()], "no running statistics"),
        ([nn.ReLU()], "no such layer"),
    ],
    ids=["nothing behind", "another activation", "pool first", "statistics of the batch", "another layer"],
)
def test_layers_without_a_relu_have_no_predictor(layers: list[nn.Module], why: str):
    student = GraphModule(module := nn.Sequential(*layers), torch.fx.Tracer().trace(module))
    found = site_of(student, "0")
    assert isinstance(found, str)
    assert why in found
    with pytest.raises(RefusalError, match=f"0: has no place for a predictor, as .*{why}"):
        calibrate(student, {"0": 0.1}, batches(1))


def test_an_output_that_is_read_twice_has_no_predictor():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.relu(y) + y

    assert site_of(trace(Twice()), "conv") == "its output does not go into a ReLU and nowhere else"


def test_predictors_of_another_network_are_refused():
    student, data = network(), batches(1)
    found = calibrate(student, {"0": 0.1}, data)["0"]
    with pytest.raises(RefusalError, match="2: the student's layer has another size"):
        with_predictors(student, {"2": found})
