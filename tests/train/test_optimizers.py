import pytest
import torch

from bnnconvert.errors import UsageError
from bnnconvert.train.layout import use_layout
from bnnconvert.train.optimizers import OPTIMIZERS, make_optimizer, parameter_groups, set_weight_decay
from bnnconvert.train.schedule import Span
from bnnconvert.values.recipe import Optimizer, Stage
from tests.train.toys import make_student

DECAY = Optimizer(weight_decay=0.1, binary_weight_decay=0.01)


def test_groups_hold_each_parameter_once_by_kind() -> None:
    student = make_student()
    names = {parameter: name for name, parameter in student.named_parameters()}
    groups = {group["kind"]: {names[p] for p in group["params"]} for group in parameter_groups(student, DECAY)}
    assert groups["binary"] == {"conv.weight", "hidden.weight"}
    assert groups["float"] == {"stem.weight", "head.weight"}
    assert groups["undecayed"] == set(names.values()) - groups["binary"] - groups["float"]
    assert "conv.input_binarizer.shift" in groups["undecayed"]
    assert sum(len(group["params"]) for group in parameter_groups(student, DECAY)) == len(names)


def test_decay_follows_the_stage() -> None:
    optimizer = make_optimizer(make_student(), DECAY)

    def decay(stage: Stage) -> dict[str, float]:
        set_weight_decay(optimizer, DECAY, Span(0, 1, 0, 1, stage))
        return {group["kind"]: group["weight_decay"] for group in optimizer.param_groups}

    assert decay(Stage()) == {"binary": 0.01, "float": 0.1, "undecayed": 0.0}
    assert decay(Stage(weights=False)) == {"binary": 0.1, "float": 0.1, "undecayed": 0.0}
    assert decay(Stage(weight_decay=0.5)) == {"binary": 0.01, "float": 0.5, "undecayed": 0.0}


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_takes_a_step_downhill_and_can_be_saved(name: str) -> None:
    student = make_student()
    optimizer = make_optimizer(student, Optimizer(name=name, lr=0.001))
    before = student.get_submodule("head").weight.detach().clone()
    student.get_submodule("head").weight.grad = torch.ones_like(before)
    optimizer.step()
    assert (student.get_submodule("head").weight < before).all()
    optimizer.load_state_dict(optimizer.state_dict())


def test_an_unknown_optimizer_is_named() -> None:
    with pytest.raises(UsageError, match="unknown optimizer 'adm'; did you mean 'adam'"):
        make_optimizer(make_student(), Optimizer(name="adm"))


def test_gradients_lie_in_memory_as_their_weights_do() -> None:
    """Fused optimizers walk over both as flat memory."""
    student = make_student()
    use_layout(student, torch.channels_last)
    student(torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)).sum().backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride(), name
    weight = student.get_submodule("conv").weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    plain = weight.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    plain.grad = weight.grad.clone(memory_format=torch.contiguous_format)
    for _ in range(2):
        make_optimizer(student, Optimizer()).step()
        torch.optim.Adam([plain], lr=1e-3).step()
    torch.testing.assert_close(weight, plain)
