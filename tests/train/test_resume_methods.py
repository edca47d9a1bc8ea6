"""Methods with schedules, learned scales and rotations: a run that goes on ends with the same bits."""

from pathlib import Path
from typing import Any

import pytest
from torch.fx import GraphModule

from bnnconvert.binarizers import build_input_binarizer, build_weight_binarizer
from bnnconvert.values.recipe import Named
from tests.train.toys import STAGES, Stop, StopAt, make_student, run, same_weights

METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "learned-scale": ({"estimator": "swish-sign"}, {"name": "sign", "estimator": "swish-sign"}),
    "recu": ({"estimator": "identity"}, {"name": "standardized-sign", "estimator": "approx-sign"}),
    "rbnn": ({"estimator": "training-aware"}, {"name": "standardized-sign", "estimator": "training-aware"}),
    "adabin": ({"estimator": "ede"}, {"name": "adabin", "estimator": "approx-sign"}),
    "biper": ({}, {"name": "standardized-sign", "estimator": "approx-sign"}),
    "dsq": ({}, {"name": "dsq"}),
    "self-binarizing": ({"end": 100.0}, {"name": "self-binarizing", "end": 100.0}),
}


def student(method: str) -> GraphModule:
    made = make_student()
    conv, (options, inputs) = made.get_submodule("conv"), METHODS[method]
    shape = tuple(conv.weight.shape)
    conv.weight_binarizer = build_weight_binarizer(Named(name=method, **options), shape, where="test")
    conv.input_binarizer = build_input_binarizer(Named(**inputs), shape[1], where="test")
    conv.weight_binarizer.calibrate(conv.weight.detach())
    return made


@pytest.mark.parametrize("method", METHODS)
def test_a_run_goes_on_exactly_inside_an_epoch_of_either_stage(method: str, tmp_path: Path) -> None:
    training = {"stages": STAGES, "schedule_spans": "stage"}
    whole, _ = run(student=student(method), training=training)
    for at in (6, 9):  # at the first step with binary weights, and later in that epoch
        folder = tmp_path / str(at)
        with pytest.raises(Stop):
            run(folder, student=student(method), training=training, progress=StopAt(at), checkpoint_seconds=0.0)
        resumed, _ = run(folder, student=student(method), training=training, resume=True)
        assert same_weights(whole, resumed)
