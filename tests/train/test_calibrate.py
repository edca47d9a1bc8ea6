import torch
from torch import nn

from bnnconvert.train import prepare
from bnnconvert.train.calibrate import calibrate_inputs, reestimate_batch_norm
from tests.train.toys import make_student


def test_running_statistics_become_the_plain_average_over_batches() -> None:
    norm = nn.BatchNorm1d(3, momentum=0.3)
    norm.running_mean.fill_(7.0)
    model = nn.Sequential(norm, nn.Dropout(0.5)).train()
    batches = [torch.randn(8, 3) * 2 + 1 for _ in range(5)]
    reestimate_batch_norm(model, batches)
    torch.testing.assert_close(norm.running_mean, torch.stack([b.mean(0) for b in batches]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([b.var(0) for b in batches]).mean(0))
    assert norm.momentum == 0.3
    assert model[1].training
    assert norm.training


def test_estimating_again_changes_nothing() -> None:
    student = make_student().eval()
    batches = [torch.randn(8, 3, 8, 8) for _ in range(3)]
    reestimate_batch_norm(student, batches)
    first = {name: value.clone() for name, value in student.state_dict().items()}
    reestimate_batch_norm(student, batches)
    assert all(torch.equal(first[name], value) for name, value in student.state_dict().items())
    assert not student.training


def test_models_without_statistics_are_left_alone() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False))
    reestimate_batch_norm(model, [torch.randn(4, 3)])
    assert model[0].running_mean is None


def test_binarizers_see_what_the_calibrated_layers_before_them_give() -> None:
    student = make_student()
    x = torch.randn(32, 3, 8, 8) + 3
    statistics = {n: b.clone() for n, b in student.named_buffers()}
    calibrate_inputs(student, x)
    entering: list[torch.Tensor] = []
    student.get_submodule("conv").register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    assert all(torch.equal(statistics[n], b) for n, b in student.named_buffers()), "statistics must not move"
    student.train()(x)
    shift = student.get_submodule("conv.input_binarizer").shift
    torch.testing.assert_close(shift.detach(), -entering[0].mean(dim=(0, 2, 3)).detach())


def test_a_layer_called_twice_is_calibrated_by_its_first_call() -> None:
    student = make_student()
    binarizer = student.get_submodule("conv.input_binarizer")

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.binarizer = binarizer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.binarizer(x) + self.binarizer(x + 100)

    x = torch.randn(4, 6, 2, 2)
    calibrate_inputs(Twice(), x)
    torch.testing.assert_close(binarizer.shift.detach(), -x.mean(dim=(0, 2, 3)))


def test_prepare_does_both_from_a_stream() -> None:
    student, twin = make_student(), make_student()
    batches = [torch.randn(8, 3, 8, 8) for _ in range(3)]
    prepare(student, iter(batches))
    calibrate_inputs(twin, batches[0])
    reestimate_batch_norm(twin, batches)
    assert all(
        torch.equal(a, b) for a, b in zip(student.state_dict().values(), twin.state_dict().values(), strict=True)
    )
