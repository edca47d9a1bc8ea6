"""Per-channel arithmetic against plain torch, in both layouts."""

import pytest
import torch

from bnnconvert.channels import channel_moments, channel_sums, inner_product, scale, shift, wide


@pytest.mark.parametrize("shape", [(4, 16, 8, 8), (3, 24, 5, 7), (1, 300, 3, 3), (0, 16, 8, 8)])
def test_sums_with_few_and_many_channels(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(channel_sums(x), x.sum((0, 2, 3)))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_sums_and_shift_of_images(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 6).contiguous(memory_format=layout)
    torch.testing.assert_close(channel_sums(x), x.sum((0, 2, 3)))
    leaf, by, g = x.clone().requires_grad_(), torch.randn(3, requires_grad=True), torch.randn_like(x)
    y = shift(leaf, by)
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(y, x + by.reshape(3, 1, 1))
    y.backward(g)
    torch.testing.assert_close(leaf.grad, g)
    torch.testing.assert_close(by.grad, g.sum((0, 2, 3)))


def test_sums_and_shift_of_features() -> None:
    x, by = torch.randn(4, 3), torch.randn(3)
    torch.testing.assert_close(channel_sums(x), x.sum(0))
    torch.testing.assert_close(shift(x, by), x + by)
    assert wide(by, x).shape == (3,)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_moments_are_those_of_torch_with_their_gradients(layout: torch.memory_format) -> None:
    x = (torch.randn(4, 3, 5, 6) * 2 + 1).contiguous(memory_format=layout).requires_grad_()
    weights = torch.randn(2, 3)
    ours = torch.stack(channel_moments(x))
    (ours * weights).sum().backward()
    variance, mean = torch.var_mean(x, [0, 2, 3], correction=0)
    theirs = torch.stack([mean, variance])
    torch.testing.assert_close(ours, theirs)
    (expected,) = torch.autograd.grad((theirs * weights).sum(), x)
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_scale_has_the_gradients_of_a_plain_product(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 6).contiguous(memory_format=layout)
    leaf, by, g = x.clone().requires_grad_(), torch.randn(3, requires_grad=True), torch.randn_like(x)
    y = scale(leaf, by)
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(y, x * by.reshape(3, 1, 1))
    y.backward(g)
    torch.testing.assert_close(leaf.grad, g * by.detach().reshape(3, 1, 1))
    torch.testing.assert_close(by.grad, (g * x).sum((0, 2, 3)))
    torch.testing.assert_close(scale(x[..., 0, 0], by.detach()), x[..., 0, 0] * by.detach())


@pytest.mark.parametrize("layouts", [(0, 0), (1, 1), (0, 1), (1, 0)])
def test_inner_product_whatever_the_layouts(layouts: tuple[int, int]) -> None:
    kinds = (torch.contiguous_format, torch.channels_last)
    a, b = (torch.randn(4, 3, 5, 6).contiguous(memory_format=kinds[layout]) for layout in layouts)
    torch.testing.assert_close(inner_product(a, b), (a * b).sum(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(inner_product(a[:, :, 0, 0], b[:, :, 0, 0]), (a * b)[:, :, 0, 0].sum())
