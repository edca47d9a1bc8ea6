import pytest
import torch

from bnnconvert.errors import RefusalError
from bnnconvert.train.diagnose import first_not_finite, refuse_bad_parameters, refuse_not_finite
from tests.train.toys import make_student, make_teacher

X = torch.randn(4, 3, 8, 8)


def test_a_sound_model_has_nothing_to_blame() -> None:
    assert first_not_finite(make_student(), X) is None


def test_the_first_layer_in_order_of_execution_is_named() -> None:
    student = make_student()
    with torch.no_grad():
        student.get_submodule("head").bias.fill_(torch.inf)
        student.get_submodule("conv_norm").weight[0] = 1e38
        student.get_submodule("conv_norm").bias[0] = 3e38
    # conv_norm's parameters are finite, what it makes of them is not.
    assert first_not_finite(student.train(), X * 3) == "the output of layer 'conv_norm' is not finite"


def test_a_weight_that_hides_behind_a_sign_is_found() -> None:
    student = make_student()
    with torch.no_grad():
        student.get_submodule("conv").weight[0] = torch.nan
    assert bool(torch.isfinite(student(X)).all())
    assert first_not_finite(student, X) == "'weight' of layer 'conv' is not finite"
    with pytest.raises(RefusalError, match="after step 7: 'weight' of layer 'conv'"):
        refuse_bad_parameters(student, step=7)


def test_data_teacher_and_loss_are_told_apart_from_layers() -> None:
    student, fine = make_student(), make_teacher()(X).detach()
    for x, teacher_logits, message in (
        (X * torch.nan, fine, "the batch itself"),
        (X, fine * torch.nan, "the teacher's output"),
        (X, None, "the loss itself overflows"),
    ):
        with pytest.raises(RefusalError, match=f"at step 3, loss nan: .*{message}"):
            refuse_not_finite(student, x, loss=float("nan"), step=2, teacher_logits=teacher_logits)


def test_a_process_whose_own_loss_is_fine_points_to_the_other() -> None:
    with pytest.raises(RefusalError, match="another process's loss"):
        refuse_not_finite(make_student(), X, loss=1.0, step=2, teacher_logits=None)


def test_no_hooks_stay_behind() -> None:
    student = make_student()
    first_not_finite(student, X)
    assert not any(module._forward_hooks for module in student.modules())
