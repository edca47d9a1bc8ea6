"""What is timed as a step: all that the recipe's step is."""

from typing import Any

import pytest
import torch

from bnnconvert.train import cost
from bnnconvert.train.objective import Objective
from tests.train.toys import make_student, make_teacher, make_training, same_weights

BOTH: list[dict[str, Any]] = [{"name": "cross-entropy"}, {"name": "mutual"}]


@pytest.mark.parametrize(
    ("changes", "evaluations", "trained"),
    [
        ({}, 1, False),
        ({"teacher": "joint", "losses": BOTH}, 1, True),
        ({"optimizer": {"name": "extragradient", "lr": 0.01}}, 2, False),
    ],
)
def test_a_step_has_every_gradient_and_every_network_of_the_recipe(
    changes: dict[str, Any], evaluations: int, trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[Objective, list[bool]]] = []

    class Counted(Objective):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append((self, []))
            self.calls = made[-1][1]

        def __call__(self, *arguments: Any, **options: Any) -> Any:
            self.calls.append(True)
            return super().__call__(*arguments, **options)

    monkeypatch.setattr(cost, "Objective", Counted)
    teacher, x = make_teacher(), torch.randn(4, 3, 8, 8)
    found = cost.step_cost(make_student(), teacher, make_training(**changes), x, torch.arange(4) % 3, rounds=2)
    assert found.ratio > 0
    rounds = cost.WARM_UP + 2
    assert [len(calls) for _, calls in made] == [rounds, evaluations * rounds, evaluations * rounds]
    twin = made[-1][0].trained
    assert (twin is not None) == trained
    if twin is not None:
        assert not same_weights(twin, teacher)
