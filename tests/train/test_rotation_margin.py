"""Rotation-consistent margin: plain margin-softmax under a common rotation, more where members scatter."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bnnconvert
from bnnconvert.errors import UsageError
from bnnconvert.recipe import load_recipe
from bnnconvert.train.features import entering
from bnnconvert.train.losses import Outputs
from bnnconvert.train.losses.rotation_margin import ClassCentres, RotationMargin, angle
from bnnconvert.train.objective import Objective
from bnnconvert.values.recipe import Loss
from tests.networks import Residual, randomise
from tests.rarely import rarely
from tests.train.toys import STAGES, Stop, StopAt, float_net, make_student, make_teacher, run, same_weights, trace

NAMED = Loss.model_validate({"name": "rotation-margin", "scale": 4.0, "margin": 0.2})


def value(ours: Tensor, theirs: Tensor, labels: Tensor, weight: Tensor, **options: float) -> Tensor:
    """The loss of one batch, whose own means are the centres, under these directions of the classes."""
    loss = RotationMargin(**options)
    loss.path, loss.centres = "fc", ClassCentres(*weight.shape)
    loss.layer = nn.Linear(weight.shape[1], len(weight))
    loss.layer.weight.data = weight
    logits = torch.zeros(len(ours), len(weight))
    return loss(Outputs(logits, labels, logits, {entering("fc"): ours}, {entering("fc"): theirs}))


def turns(by: float, pairs: int) -> Tensor:
    """A rotation of every vector by one angle."""
    turn = torch.tensor([[math.cos(by), -math.sin(by)], [math.sin(by), math.cos(by)]])
    return torch.block_diag(*[turn] * pairs)


@pytest.mark.parametrize("pairs", [1, 3])
@pytest.mark.parametrize("by", [0.0, 0.7, 2.0])
def test_a_common_rotation_leaves_the_plain_margin_loss(by: float, pairs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    theirs = torch.randn(12, 2 * pairs, generator=generator)
    weight = torch.randn(4, 2 * pairs, generator=generator)
    labels = torch.arange(12) % 4
    ours = theirs @ turns(by, pairs).T
    turned = value(ours, theirs, labels, weight, scale=8.0, margin=0.3, rate=2.0)
    cosines = F.normalize(ours, dim=1) @ F.normalize(weight, dim=1).T
    angles = cosines.arccos() + 0.3 * F.one_hot(labels, 4)
    expected = F.cross_entropy(8 * angles.clamp(max=math.pi).cos(), labels)
    torch.testing.assert_close(turned, expected, atol=1e-4, rtol=1e-3)


def test_members_that_scatter_around_a_centre_that_stays() -> None:
    delta, margin, rate, scale = 0.3, 0.2, 1.5, 4.0
    theirs = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    ours = torch.tensor([[math.cos(delta), math.sin(delta)], [math.cos(delta), -math.sin(delta)]])
    got = value(ours, theirs, torch.tensor([0, 0]), torch.eye(2), scale=scale, margin=margin, rate=rate)
    target = scale * math.cos(delta + margin + rate * delta)
    terms = [math.log(1 + math.exp(scale * sine - target)) for sine in (math.sin(delta), -math.sin(delta))]
    assert got.item() == pytest.approx(sum(terms) / 2, abs=1e-3)  # the clamp leaves the centre 5e-4 of an angle


def test_without_margin_and_rate_it_is_cross_entropy_of_scaled_cosines() -> None:
    ours, weight, labels = torch.randn(5, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 3, 0])
    got = value(ours, torch.randn(5, 3), labels, weight, scale=2.0, margin=0.0, rate=0.0)
    cosines = F.normalize(ours, dim=1) @ F.normalize(weight, dim=1).T
    torch.testing.assert_close(got, F.cross_entropy(2 * cosines, labels))


def test_gradients_see_the_scattering_and_stay_finite_at_the_ends() -> None:
    theirs, labels = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 0])
    gradients = []
    for rate in (0.0, 1.0):
        ours = torch.tensor([[math.cos(0.3), math.sin(0.3)], [math.cos(0.3), -math.sin(0.3)]], requires_grad=True)
        value(ours, theirs, labels, torch.eye(2), rate=rate, scale=4.0).backward()
        assert ours.grad is not None
        gradients.append(ours.grad.norm().item())
    assert gradients[1] > 1.5 * gradients[0]
    for ours in (theirs.clone(), -theirs, torch.zeros(2, 2)):
        ours.requires_grad_()
        value(ours, theirs, labels, torch.eye(2)).backward()
        assert ours.grad is not None
        assert ours.grad.isfinite().all()


def test_mixed_precision_leaves_the_angles_as_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, weight = torch.randn(6, 8, generator=generator), torch.randn(3, 8, generator=generator)
    theirs = ours + 0.01 * torch.randn(6, 8, generator=generator)
    labels = torch.arange(6) % 3
    weight[0] = ours[0]  # in half precision a cosine of one, where the arc cosine has no slope
    found = []
    for enabled in (False, True):
        leaf = ours.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = value(leaf, theirs, labels, weight)
        loss.backward()
        found.append((loss, leaf.grad))
    torch.testing.assert_close(found[1], found[0])


def test_angles_are_clamped() -> None:
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]])
    found = angle(rows, torch.tensor([[3.0, 0.0]]).expand(3, 2))
    assert found.tolist() == pytest.approx([0, math.pi, math.pi / 2], abs=1e-3)


def test_centres_are_running_means_of_the_classes_that_a_batch_has() -> None:
    centres = ClassCentres(3, 2)
    features = torch.tensor([[2.0, 0.0], [4.0, 2.0], [1.0, 1.0]])
    ours, theirs = centres(features, -features, torch.tensor([0, 0, 2]))
    assert ours.tolist() == [[3, 1], [3, 1], [1, 1]]
    assert torch.equal(theirs, -ours)
    assert centres.seen.tolist() == [True, False, True]
    centres(torch.tensor([[13.0, 1.0], [5.0, 5.0]]), torch.zeros(2, 2), torch.tensor([0, 1]))
    torch.testing.assert_close(centres.student, torch.tensor([[4.0, 1.0], [5.0, 5.0], [1.0, 1.0]]))
    torch.testing.assert_close(centres.teacher, torch.tensor([[-2.7, -0.9], [0.0, 0.0], [-1.0, -1.0]]))


def test_it_compares_what_enters_the_classifier_also_through_a_batch_norm_behind_it() -> None:
    student = bnnconvert.convert(randomise(Residual()), "bnn", input_shape=Residual.input_shape)
    loss = RotationMargin()
    assert loss.features(student.model, student.teacher) == ["fc:input"]
    assert loss.centres is not None
    assert loss.centres.student.shape == (5, 12)
    objective = Objective([NAMED], student.model, student.teacher, device=torch.device("cpu"))
    made = objective(student.model.train(), torch.randn(6, 3, 8, 8), torch.arange(6) % 5, progress=0.0, check=True)
    made.loss.backward()
    assert student.model.get_submodule("fc").weight.grad.abs().sum() > 0
    objective.close()
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in student.model.modules())


def test_where_it_cannot_apply_it_is_refused() -> None:
    with pytest.raises(UsageError, match="'rotation-margin' needs a teacher"):
        Objective([NAMED], make_student(), None, device=torch.device("cpu"))
    headless = trace(nn.Sequential(float_net(), nn.Hardtanh()))
    with pytest.raises(UsageError, match="the student ends in none; leave the loss out"):
        RotationMargin().features(headless, make_teacher())
    wide = make_teacher()
    wide.head = nn.Linear(16, 3)
    with pytest.raises(UsageError, match=r"'head' of \(3, 8\) in the student and 'head' of \(3, 16\) in the teacher"):
        RotationMargin().features(make_student(), wide)


def test_any_recipe_takes_it() -> None:
    recipe = load_recipe("reactnet")
    training = recipe.training.model_copy(update={"losses": [*recipe.training.losses, NAMED]})
    student = bnnconvert.convert(
        randomise(Residual()), recipe.model_copy(update={"training": training}), input_shape=Residual.input_shape
    )
    objective = Objective(student.recipe.training.losses, student.model, student.teacher, device=torch.device("cpu"))
    x, labels = torch.randn(6, 3, 8, 8), torch.arange(6) % 5
    both = objective(student.model, x, labels, progress=0.0, check=True).loss
    assert both.isfinite()


@pytest.mark.parametrize("at", [6, *rarely(3, 11)])
def test_a_run_goes_on_exactly_with_its_centres(tmp_path: Path, at: int) -> None:
    losses = [{"name": "distill"}, NAMED.model_dump()]
    training: dict[str, Any] = {"losses": losses, "stages": STAGES}
    whole, _ = run(training=training)
    with pytest.raises(Stop):
        run(tmp_path, training=training, progress=StopAt(at), checkpoint_seconds=0.0)
    (centres,) = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["parts"]["others"]
    assert centres["seen"].all()
    resumed, _ = run(tmp_path, training=training, resume=True)
    assert same_weights(whole, resumed)
    forgotten = copy.deepcopy(losses)
    forgotten[1]["rate"] = 0.0
    other, _ = run(training=training | {"losses": forgotten})
    assert not same_weights(whole, other)
