"""The float ends of a student in 8 bits: near the float layers, centred on the data, found again in a file."""

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from bnnconvert.errors import RefusalError
from bnnconvert.lower.edges import calibrate, edges_of, with_edges
from bnnconvert.lower.program import lower
from tests.students import trace


def network() -> GraphModule:
    torch.manual_seed(0)
    return trace(nn.Sequential(nn.Conv2d(3, 20, 5, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(320, 7)))


def batches(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 8, 8, generator=generator) for _ in range(count)]


def test_8_bits_are_near_the_float_layers_and_the_student_stays() -> None:
    student, data = network(), batches()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    made = with_edges(student, calibrate(student, ["0", "3"], data))
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    expected = student(x)
    assert (made(x) - expected).abs().max() < 0.03 * expected.abs().max()
    assert not torch.equal(made(x), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_no_output_channel_is_off_on_the_calibration_data() -> None:
    student, data = network(), batches()
    made = with_edges(student, calibrate(student, ["0"], data))
    error = torch.stack([student.get_submodule("0")(x) - made.get_submodule("0")(x) for x in data])
    assert error.mean((0, 1, 3, 4)).abs().max() < 1e-5
    assert error.abs().max() > 1e-4


def test_a_rare_large_value_does_not_cost_all_others_their_digits() -> None:
    student = trace(nn.Sequential(nn.Conv2d(3, 4, 3)))
    x = torch.randn(4, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0, 0] = 12.0
    assert calibrate(student, ["0"], [x])["0"].factor > 127 / 9


def test_a_program_tells_its_edges() -> None:
    student = network()
    edges = calibrate(student, ["0", "3"], batches())
    program, tensors = lower(with_edges(student, edges), batches(1)[0])
    found = edges_of(program, tensors)
    assert list(found) == ["0", "3"]
    for path, edge in edges.items():
        assert found[path].factor == edge.factor
        assert torch.equal(found[path].bias, edge.bias)


def test_an_input_of_zeros_cannot_be_calibrated() -> None:
    with pytest.raises(RefusalError, match=r"0: its input reaches 0\.0 on the calibration data"):
        calibrate(network(), ["0"], [torch.zeros(1, 3, 8, 8)])


def test_a_layer_of_another_form_is_refused() -> None:
    student = trace(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")))
    with pytest.raises(RefusalError, match="0: a Conv2d of this form has no 8 bits"):
        calibrate(student, ["0"], batches(1))
