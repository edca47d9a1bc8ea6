import pytest
import torch

from bnnconvert.errors import UsageError
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
