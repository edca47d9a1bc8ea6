"""Gradients of few bits: the clip that turns them least, the rate that follows, the run that goes on."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from bnnconvert.errors import UsageError
from bnnconvert.train.gradients import GradientQuantizer, best_clip, rate_of
from tests.rarely import rarely
from tests.train.toys import Stop, StopAt, make_student, run, same_weights


def test_the_rate_falls_with_the_deviation_to_a_tenth() -> None:
    assert rate_of(0) == 1
    assert rate_of(0.05) == pytest.approx(0.3679, abs=1e-4)
    assert rate_of(0.11513) == pytest.approx(0.1, abs=1e-5)
    assert rate_of(0.5) == 0.1


def deviation(grad: torch.Tensor, clip: float, levels: int) -> float:
    step = clip / levels
    rounded = (grad.clamp(-clip, clip) / step).round() * step
    return 1 - F.cosine_similarity(rounded, grad, dim=0).item()


@pytest.mark.parametrize("levels", [1, 7, 127])
def test_the_clip_is_the_one_that_deviates_least(levels: int) -> None:
    grad = torch.cat([torch.ones(300), torch.tensor([100.0])])
    clip, least = best_clip(grad, levels)
    tried = {100 * 2 ** (-i / 2): deviation(grad, 100 * 2 ** (-i / 2), levels) for i in range(16)}
    assert least.item() == pytest.approx(min(tried.values()), abs=1e-6)
    assert tried[min(tried, key=lambda c: abs(c - clip.item()))] == pytest.approx(least.item(), abs=1e-6)
    if levels == 1:  # an outlier of 100 among 300 ones: at c = 100 the ones vanish
        assert deviation(grad, 100.0, 1) == pytest.approx(1 - 100 / math.sqrt(100**2 + 300), abs=1e-6)


def test_a_gradient_is_rounded_without_bias_to_the_levels_inside_its_clip() -> None:
    quantizer = GradientQuantizer(make_student(), 8)
    quantizer.clips.fill_(1.27)
    torch.manual_seed(0)
    grad = torch.tensor([0.0, 0.0123, -0.5049, 1.0, 5.0, -5.0])
    drawn = quantizer.quantized(grad.expand(20_000, 6), 0)
    steps = drawn / 0.01
    torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
    assert (drawn - grad.clamp(-1.27, 1.27)).abs().max() < 0.01 + 1e-6
    torch.testing.assert_close(drawn.mean(dim=0), grad.clamp(-1.27, 1.27), atol=2e-4, rtol=0)


def test_only_the_gradient_changes_and_only_in_training() -> None:
    student, x = make_student(drop=0.0).train(), torch.randn(4, 6, 8, 8)
    layer = student.get_submodule("conv")
    plain = layer(x)
    quantizer = GradientQuantizer(student, 2)
    quantizer.begin_step(0)
    made = layer(x)
    assert torch.equal(made, plain)
    seen: list[torch.Tensor] = []
    made.grad_fn.next_functions[0][0].register_prehook(lambda grads: seen.append(grads[0]))
    made.backward(torch.randn_like(made))
    assert len(seen[0].unique()) == 3  # -c, 0 and c
    assert quantizer.clips[0] > 0
    assert quantizer.rates()["conv"] < 1
    assert layer.eval()(x).grad_fn.name() != "_QuantizeBackward"
    quantizer.close()
    assert not any(m._forward_hooks for m in student.modules())


@pytest.mark.parametrize("at", [6, *rarely(5, 11)])
def test_a_run_goes_on_exactly_with_its_clips(tmp_path: Path, at: int) -> None:
    training = {"gradient_bits": 8, "optimizer": {"name": "sgd", "lr": 0.05}}
    whole, _ = run(training=training)
    assert not any(m._forward_hooks for m in whole.modules())
    with pytest.raises(Stop):
        run(tmp_path, training=training, progress=StopAt(at), checkpoint_seconds=0.0)
    resumed, _ = run(tmp_path, training=training, resume=True)
    assert same_weights(whole, resumed)
    other, _ = run(training=training | {"gradient_bits": None})
    assert not same_weights(whole, other)


def test_fp16_is_refused() -> None:
    with pytest.raises(UsageError, match=r"training\.gradient_bits: clips are no longer right when fp16"):
        run(training={"gradient_bits": 8}, mixed_precision="fp16")
