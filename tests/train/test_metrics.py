import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from bnnconvert.errors import RefusalError, UsageError
from bnnconvert.tasks import CLASSIFICATION
from bnnconvert.train.metrics import evaluate_samples, measure_accuracy
from bnnconvert.train.monitor import dead_channels, flip_ratios
from bnnconvert.values.data import normalise
from bnnconvert.values.report import DeadChannels
from tests.train.toys import make_data, make_student

LOGITS = torch.tensor([[0.0, 1.0], [1.0, 0.0]])


@pytest.mark.parametrize("output", [LOGITS, (LOGITS, 3), [LOGITS], {"logits": LOGITS}, {"a": LOGITS}, LOGITS.numpy()])
def test_logits_are_found_in_what_models_return(output: Any) -> None:
    assert torch.equal(CLASSIFICATION.output(output), LOGITS)


@pytest.mark.parametrize("output", [None, [], {}, torch.zeros(2), torch.zeros(1, 2, 3), "logits"])
def test_anything_else_is_refused(output: Any) -> None:
    with pytest.raises(RefusalError, match=r"classification expects shape \(N, classes\)"):
        CLASSIFICATION.output(output)


def test_accuracy_of_a_torch_and_of_a_numpy_callable() -> None:
    data = make_data(samples=50)

    def brightest(x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))

    def brightest_array(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        assert x.flags.c_contiguous
        assert x.dtype == np.float32
        return x.mean(axis=(2, 3))

    ours = evaluate_samples(brightest, data.train, data, batch_size=16)
    assert ours == evaluate_samples(brightest_array, data.train, data, batch_size=7, as_numpy=True)
    assert ours.samples == 50
    guesses = normalise(data.train.images, data.mean, data.std).mean(dim=(2, 3)).argmax(dim=1)
    assert ours.accuracy == (guesses == data.train.labels).double().mean().item()
    assert ours.accuracy > 0.9


def test_accuracy_of_no_samples_is_zero() -> None:
    assert measure_accuracy(lambda x: x, []).samples == 0


def test_a_label_without_an_output_is_named() -> None:
    data = make_data(samples=8, classes=5)
    with pytest.raises(UsageError, match="label 4, but the model has 3 outputs"):
        evaluate_samples(lambda x: x.mean(dim=(2, 3)), data.train, data)


def test_flip_ratio_counts_changed_signs() -> None:
    before = {"conv": torch.tensor([True, True, False, False])}
    assert flip_ratios(before, {"conv": torch.tensor([True, False, False, True])}) == {"conv": 0.5}


def test_dead_channels_are_counted_by_sign() -> None:
    student = make_student().train()
    shift = student.get_submodule("conv.input_binarizer").shift
    with torch.no_grad():
        shift[:4] = torch.tensor([100.0, 100.0, -100.0, 0.0])
    found = dead_channels(student, torch.randn(16, 3, 8, 8))
    assert found["conv"] == DeadChannels(channels=6, minus=1, plus=2)
    assert found["hidden"].channels == 32
    assert student.training
    assert not any(module._forward_pre_hooks for module in student.modules())


def test_a_report_of_a_run_turns_into_plain_data() -> None:
    assert dataclasses.asdict(DeadChannels(3, 1, 0)) == {"channels": 3, "minus": 1, "plus": 0}
