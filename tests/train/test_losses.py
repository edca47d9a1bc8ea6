import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import bnnconvert
from bnnconvert.binarizers import build_weight_binarizer
from bnnconvert.binarizers.pact import PactInput
from bnnconvert.errors import UsageError
from bnnconvert.train import set_stage
from bnnconvert.train.losses import LOSSES, Outputs
from bnnconvert.train.losses.attention_match import AttentionMatch
from bnnconvert.train.losses.clip_level import ClipLevel
from bnnconvert.train.losses.cross_entropy import CrossEntropy
from bnnconvert.train.losses.distill import Distill
from bnnconvert.train.losses.distribution import Distribution
from bnnconvert.train.losses.feature_match import FeatureMatch
from bnnconvert.train.objective import Objective, build_losses
from bnnconvert.values.recipe import Loss, Named, Training
from tests.networks import Residual
from tests.train.toys import make_admm_student, make_student, make_teacher

# Apprentice: y = 0, z_S = [0, 0], z_T = [ln 3, 0], so p_T = [3/4, 1/4].
TEACHER = torch.tensor([[math.log(3), 0.0]])
LABEL = torch.tensor([0])


def outputs(student: list[float], teacher: torch.Tensor = TEACHER) -> tuple[torch.Tensor, Outputs]:
    logits = torch.tensor([student], requires_grad=True)
    return logits, Outputs(logits, LABEL, teacher)


def test_apprentice_gradient_is_distillation_with_half_labels() -> None:
    logits, batch = outputs([0.0, 0.0])
    loss = Distill(temperature=1.0, labels=0.5)(batch)
    loss.backward()
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert loss.item() == pytest.approx(0.5 * 0.693147 + 0.5 * (0.693147 - entropy), abs=1e-6)
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.375, 0.375]]))


def test_apprentice_terms_in_closed_form() -> None:
    _, batch = outputs([0.0, 0.0])
    assert CrossEntropy()(batch).item() == pytest.approx(0.693147, abs=1e-6)
    assert Distribution()(batch).item() == pytest.approx(0.693147, abs=1e-6)
    _, own = outputs([math.log(3), 0.0])
    assert CrossEntropy()(own).item() == pytest.approx(0.287682, abs=1e-6)


def test_distillation_is_zero_at_the_teacher_and_positive_elsewhere() -> None:
    assert Distill()(outputs([math.log(3), 0.0])[1]).item() == pytest.approx(0, abs=1e-6)
    assert Distill()(outputs([0.0, 0.0])[1]).item() > 1e-3


def test_temperature_keeps_the_size_of_the_gradient() -> None:
    gradients = []
    for temperature in (8.0, 16.0):
        logits, batch = outputs([0.0, 0.0])
        Distill(temperature=temperature)(batch).backward()
        gradients.append(logits.grad)
    # For T -> infinity the gradient is (z_S - z_T) / K with centred logits: here -ln(3) / 4.
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0.01, atol=0)
    assert gradients[1][0, 0].item() == pytest.approx(-math.log(3) / 4, rel=0.01)


def test_distribution_is_least_at_the_teachers_entropy() -> None:
    logits, batch = outputs([math.log(3), 0.0])
    loss = Distribution()(batch)
    loss.backward()
    assert loss.item() == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), abs=1e-6)
    torch.testing.assert_close(logits.grad, torch.zeros(1, 2), atol=1e-6, rtol=0)


def test_smoothing_mixes_in_the_uniform_distribution() -> None:
    _, batch = outputs([1.0, -1.0])
    log_p = F.log_softmax(torch.tensor([1.0, -1.0]), dim=0)
    assert CrossEntropy(smoothing=0.2)(batch).item() == pytest.approx(-(0.9 * log_p[0] + 0.1 * log_p[1]).item())


@pytest.mark.parametrize("name", ["feature-match", "attention-match"])
@given(scale=st.floats(min_value=0.01, max_value=100))
def test_matching_ignores_scale_and_sees_direction(name: str, scale: float) -> None:
    loss = LOSSES[name](at=["conv_norm"])
    loss.features(make_student(), make_teacher())
    feature = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    logits = torch.zeros(2, 2)

    def value(ours: torch.Tensor, theirs: torch.Tensor) -> float:
        return loss(Outputs(logits, LABEL, logits, {"conv_norm": ours}, {"conv_norm": theirs})).item()

    assert value(feature * scale, feature) == pytest.approx(0, abs=1e-6)
    assert value(feature.flip(2), feature) > 1e-3


def test_feature_match_in_closed_form() -> None:
    loss = FeatureMatch(at=["conv"])
    loss.features(make_student(), make_teacher())
    ours, theirs = torch.tensor([[3.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 5.0], [-1.0, 0.0]])
    batch = Outputs(torch.zeros(2, 2), LABEL, None, {"conv": ours}, {"conv": theirs})
    assert loss(batch).item() == pytest.approx((2 + 4) / 2)  # orthogonal, and opposite


def test_attention_match_compares_energy_whatever_the_channels() -> None:
    loss = AttentionMatch(at=["conv"])
    loss.features(make_student(), make_teacher())
    ours = torch.tensor([[[[3.0, 0.0]], [[0.0, 0.0]]]])  # one sample, two channels, energy on the left
    theirs = torch.tensor([[[[0.0, 0.0]], [[-2.0, 0.0]], [[0.0, 0.0]]]])
    batch = Outputs(torch.zeros(1, 2), LABEL, None, {"conv": ours}, {"conv": theirs})
    assert loss(batch).item() == pytest.approx(0)
    right = Outputs(torch.zeros(1, 2), LABEL, None, {"conv": ours.flip(3)}, {"conv": theirs})
    assert loss(right).item() == pytest.approx(2)


def test_attention_match_chooses_the_activations_behind_binary_layers() -> None:
    student = bnnconvert.convert(Residual(), "real2binary", input_shape=Residual.input_shape)
    paths = AttentionMatch().features(student.model, student.teacher)
    assert paths == ["layer1.relu", "layer1.relu_1", "layer2.relu", "layer2.relu_1"]


def test_attention_match_needs_a_map() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    student = bnnconvert.convert(net, "xnor", input_shape=(1, 6))
    with pytest.raises(UsageError, match="finds no activation behind a binary layer"):
        AttentionMatch().features(student.model, student.teacher)


def test_feature_match_chooses_the_activations_that_are_what_they_are_in_the_teacher() -> None:
    every = ["layer1.relu", "layer1.relu_1", "layer2.relu", "layer2.relu_1"]
    # With a shortcut around each convolution, the first activation of a block is of a sum that the teacher lacks.
    for recipe, expected in (("bwn", every), ("reactnet", every[1::2])):
        student = bnnconvert.convert(Residual(), recipe, input_shape=Residual.input_shape)
        assert FeatureMatch().features(student.model, student.teacher) == expected
    net = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    student = bnnconvert.convert(net, "xnor", input_shape=(1, 6))
    with pytest.raises(UsageError, match="finds no activation behind a binary layer"):
        FeatureMatch().features(student.model, student.teacher)


def test_matching_finds_paths_by_glob_in_the_students_order() -> None:
    loss = FeatureMatch(at=["head", "conv*"])
    assert loss.features(make_student(), make_teacher()) == ["conv", "conv_norm", "head"]


def test_a_glob_that_matches_nothing_is_an_error_with_the_nearest_path() -> None:
    with pytest.raises(UsageError, match=r"'conv_nrm' matches no module .*did you mean 'conv_norm'"):
        FeatureMatch(at=["conv_nrm"]).features(make_student(), make_teacher())


def test_features_of_different_shape_are_refused_by_path() -> None:
    loss = FeatureMatch(at=["conv"])
    loss.features(make_student(), make_teacher())
    batch = Outputs(torch.zeros(2, 2), LABEL, None, {"conv": torch.ones(2, 3)}, {"conv": torch.ones(2, 4)})
    with pytest.raises(UsageError, match=r"'conv'.*\(2, 3\).*\(2, 4\)"):
        loss(batch)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (Loss(name="distil"), "losses.0.*unknown loss 'distil'; did you mean 'distill'"),
        (
            Loss.model_validate({"name": "distill", "temprature": 3}),
            "no option 'temprature'; did you mean 'temperature'",
        ),
        (Loss.model_validate({"name": "distill", "temperature": 0}), "option 'temperature' is 0: .*greater than 0"),
        (Loss.model_validate({"name": "distill", "temperature": "hot"}), "'temperature' is 'hot': .*valid number"),
        (Loss.model_validate({"name": "attention-match", "at": []}), "'at' is .*at least 1 item"),
    ],
)
def test_wrong_losses_are_named_with_their_key(loss: Loss, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_losses([loss])


OF_WEIGHTS = {"scale-regularizer": ("learned-scale", {"estimator": "clip"}), "sine-regularizer": ("biper", {})}
"""The weight binarizers that regularisers are about."""


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_is_a_scalar_with_gradient_to_the_student_only(name: str) -> None:
    options: dict[str, Any] = {"at": ["conv_norm"]} if name.endswith("match") else {}
    options |= {"towards": "zeros"} if name == "sine-regularizer" else {}
    student, teacher = make_student(), make_teacher()
    student.get_submodule("conv").input_binarizer = PactInput(6)
    if name in OF_WEIGHTS:
        conv, (row, more) = student.get_submodule("conv"), OF_WEIGHTS[name]
        conv.weight_binarizer = build_weight_binarizer(Named(name=row, **more), (8, 6, 3, 3), where="test")
        conv.weight_binarizer.calibrate(conv.weight)
    if name == "admm":
        student = make_admm_student()
        set_stage(student, weights=False, inputs=True)
    named = [Loss.model_validate({"name": name, "weight": 2.0} | options)]
    objective = Objective(named, student, teacher, device=torch.device("cpu"))
    made = objective(student, torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]), progress=0.0, check=True)
    objective.close()
    made.loss.backward()
    assert made.loss.shape == ()
    assert sum(p.grad.abs().sum() for p in student.get_submodule("conv").parameters() if p.grad is not None) > 0
    assert all(p.grad is None for p in teacher.parameters())
    assert LOSSES[name].source


def test_clip_level_is_weight_decay_of_pact_s_levels_and_of_nothing_else() -> None:
    student = make_student()
    student.get_submodule("conv").input_binarizer = PactInput(6, clip=3.0)
    student.get_submodule("hidden").input_binarizer = PactInput(32, clip=0.5)
    loss = ClipLevel()
    loss.bind(student)
    value = loss(outputs([0.0, 0.0])[1])
    value.backward()
    assert value.item() == (9 + 0.25) / 2
    gradients = {name: p.grad.item() for name, p in student.named_parameters() if p.grad is not None}
    assert gradients == {"conv.input_binarizer.clip": 3.0, "hidden.input_binarizer.clip": 0.5}
    with pytest.raises(UsageError, match="inputs binarized by 'pact'"):
        ClipLevel().bind(make_student())


def test_a_loss_without_its_teacher_is_an_error() -> None:
    with pytest.raises(UsageError, match="'distill' needs a teacher"):
        Objective([Loss(name="distill")], make_student(), None, device=torch.device("cpu"))


def test_features_are_kept_from_in_place_activations() -> None:
    teacher = make_teacher()
    teacher.get_submodule("act").inplace = True
    named = [Loss.model_validate({"name": "feature-match", "at": ["conv_norm"]})]
    objective = Objective(named, make_student(), teacher, device=torch.device("cpu"))
    assert objective.teacher is not None
    _, features = objective.teacher(torch.randn(4, 3, 8, 8) * 10)
    assert features["conv_norm"].abs().max() > 1


def test_a_term_counts_only_in_its_part_of_the_run() -> None:
    named = [Loss(name="cross-entropy"), Loss(name="cross-entropy", weight=2.0, since=0.25, until=0.5)]
    student = make_student().eval()
    objective = Objective(named, student, None, device=torch.device("cpu"))
    x, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    at = [objective(student, x, labels, progress=p, check=False).loss.item() for p in (0.2, 0.25, 0.49, 0.5)]
    assert at == pytest.approx([at[0], 3 * at[0], 3 * at[0], at[0]])


def test_a_term_that_ends_before_it_begins_or_leaves_a_run_without_loss_is_refused() -> None:
    with pytest.raises(ValueError, match=r"begins at 0\.5"):
        Loss(name="cross-entropy", since=0.5, until=0.5)
    with pytest.raises(ValueError, match="whole run"):
        Training(losses=[Loss(name="cross-entropy", until=0.5)])
