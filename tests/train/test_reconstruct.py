"""Post-training calibration: no labels, nearer to the teacher than batch norm re-estimated alone."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import bnnconvert
from bnnconvert.errors import UsageError
from bnnconvert.train.calibrate import fit_batch_norm
from bnnconvert.train.reconstruct import _losses, reconstruct
from bnnconvert.values.data import Data, Images
from bnnconvert.values.recipe import Loss, Stage, Training
from tests.networks import Residual
from tests.train.toys import make_data, make_student, make_teacher, same_weights


def wrong_labels(data: Data) -> Data:
    """The same images under labels that say nothing."""
    assert isinstance(data.train, Images)
    return replace(data, train=Images(data.train.images, torch.zeros_like(data.train.labels)))


def test_labels_are_never_looked_at() -> None:
    data, results = make_data(samples=400), []
    for seen in (data, wrong_labels(data)):
        torch.manual_seed(0)
        student, teacher = make_student(), make_teacher()
        made = reconstruct(student, teacher, seen, Training(), images=256, steps=6, device="cpu")
        results.append((made.before, made.after, {k: v.clone() for k, v in student.state_dict().items()}))
    assert results[0][:2] == results[1][:2]
    assert all(torch.equal(value, results[1][2][name]) for name, value in results[0][2].items())


def test_a_student_comes_nearer_to_its_teacher() -> None:
    torch.manual_seed(0)
    student, teacher = make_student(), make_teacher()
    stages = [Stage(share=0.5, weights=False, inputs=False), Stage(share=0.5)]
    training = Training(stages=stages, losses=[Loss(name="cross-entropy")])
    made = reconstruct(student, teacher, make_data(samples=600), training, images=512, steps=60, device="cpu")
    assert made.images == 512
    assert made.steps == 60
    assert made.after > made.before
    assert not student.training


def test_a_recipe_that_starts_anew_beside_its_teacher_is_calibrated_as_any_other() -> None:
    made = []
    for settings in ({}, {"teacher": "joint", "start": "scratch"}):
        torch.manual_seed(0)
        student, training = make_student(), Training.model_validate(settings)
        reconstruct(student, make_teacher(), make_data(samples=400), training, images=256, steps=4, device="cpu")
        made.append(student)
    assert same_weights(*made)


def test_quantized_inputs_follow_features_as_well() -> None:
    found = {}
    for recipe in ("bwn", "reactnet"):
        student = bnnconvert.convert(Residual(), recipe, input_shape=Residual.input_shape)
        found[recipe] = [loss.name for loss in _losses(student.model, student.teacher)]
    assert found == {"bwn": ["distill"], "reactnet": ["distill", "feature-match"]}


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UsageError, match="100 images are too few"):
        reconstruct(make_student(), make_teacher(), make_data(samples=200), Training(), images=100, device="cpu")


def test_least_squares_give_each_batch_norm_the_teacher_s_scale_and_shift() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    ).eval()
    student = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    ).eval()
    student.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        for index in (1, 4):
            nn.init.uniform_(student[index].weight, -2, 2)
            nn.init.normal_(student[index].bias)
    x = torch.randn(16, 3, 5, 5)
    assert fit_batch_norm(student, teacher, x) == 2
    torch.testing.assert_close(student(x), teacher(x), rtol=1e-3, atol=1e-4)
    assert not any(module._forward_hooks for module in (*student.modules(), *teacher.modules()))
