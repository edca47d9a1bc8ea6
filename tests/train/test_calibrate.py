import pytest
import torch
from torch import nn
from torch.fx import Graph, GraphModule

from bnnconvert.binarizers.sign import SignInput, SignWeight
from bnnconvert.estimators.clip import Clip
from bnnconvert.layers.conv2d import BinaryConv2d
from bnnconvert.train import prepare, walk
from bnnconvert.train.calibrate import calibrate_inputs, reestimate_batch_norm
from tests.train.toys import make_student, trace


def test_running_statistics_become_the_plain_average_over_batches() -> None:
    norm = nn.BatchNorm1d(3, momentum=0.3)
    norm.running_mean.fill_(7.0)
    model = trace(nn.Sequential(norm, nn.Dropout(0.5)).train())
    batches = [torch.randn(8, 3) * 2 + 1 for _ in range(5)]
    reestimate_batch_norm(model, batches)
    torch.testing.assert_close(norm.running_mean, torch.stack([b.mean(0) for b in batches]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([b.var(0) for b in batches]).mean(0))
    assert norm.momentum == 0.3
    assert model.get_submodule("1").training
    assert norm.training


def test_every_norm_is_centred_on_what_evaluation_gives_it() -> None:
    torch.manual_seed(0)
    convs = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(4)]
    signs = [
        BinaryConv2d.from_float(
            conv, weight_binarizer=SignWeight(estimator=Clip()), input_binarizer=SignInput(8, estimator=Clip())
        )
        for conv in convs
    ]
    blocks = [nn.Sequential(nn.BatchNorm2d(8), layer) for layer in signs]
    model = trace(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks, nn.BatchNorm2d(8)))
    batches = [torch.randn(8, 3, 8, 8) * scale + scale for scale in (0.5, 1.0, 2.0)]
    reestimate_batch_norm(model, batches)
    given: dict[nn.Module, list[torch.Tensor]] = {}
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.register_forward_hook(lambda m, _, y: given.setdefault(m, []).append(y))
    for x in batches:
        model.eval()(x)
    for norm in norms:
        torch.testing.assert_close(torch.cat(given[norm]).mean((0, 2, 3)), torch.zeros(8), atol=1e-5, rtol=0)


def test_a_norm_that_is_called_twice_averages_over_both() -> None:
    norm = nn.BatchNorm1d(2)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.norm(x) + self.norm(y)

    x, y = torch.randn(2, 4, 2), torch.randn(2, 4, 2) + 5
    reestimate_batch_norm(trace(Twice()), [(x[0], y[0]), (x[1], y[1])])
    torch.testing.assert_close(norm.running_mean, torch.cat([*x, *y]).mean(0))


class Writes(nn.Module):
    """Code that is called as it is and writes to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.add_(1))


def test_code_that_writes_to_its_input_does_so_once() -> None:
    graph = Graph()
    given = graph.call_module("stem", (graph.placeholder("x"),))
    graph.output(graph.call_module("after", (graph.call_module("writes", (given,)),)))
    after = nn.BatchNorm1d(3)
    root = nn.ModuleDict({"stem": nn.Identity(), "writes": Writes(), "after": after})
    reestimate_batch_norm(GraphModule(root, graph), [torch.randn(8, 3), torch.randn(8, 3)])
    torch.testing.assert_close(after.running_mean, torch.zeros(3), atol=1e-5, rtol=0)


def test_only_so_many_batches_are_looked_at_as_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "VALUES", 60)
    batches = [torch.zeros(8, 3) for _ in range(4)]
    assert len(walk.together(batches)) == 2
    assert len(walk.together([torch.zeros(100, 3)])) == 1


def test_estimating_again_changes_nothing() -> None:
    student = make_student().eval()
    batches = [torch.randn(8, 3, 8, 8) for _ in range(3)]
    reestimate_batch_norm(student, batches)
    first = {name: value.clone() for name, value in student.state_dict().items()}
    reestimate_batch_norm(student, batches)
    assert all(torch.equal(first[name], value) for name, value in student.state_dict().items())
    assert not student.training


def test_models_without_statistics_are_left_alone() -> None:
    norm = nn.BatchNorm1d(3, track_running_stats=False)
    reestimate_batch_norm(trace(nn.Sequential(norm)), [torch.randn(4, 3)])
    assert norm.running_mean is None


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
