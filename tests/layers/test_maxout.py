"""Maxout: the paper's form, its gradients, and that training and evaluation give the same."""

import pytest
import torch
from torch import nn

from bnnconvert.layers.maxout import Maxout


def test_it_starts_as_a_leaky_relu_and_is_the_paper_s_form() -> None:
    layer = Maxout(3, slope=0.25)
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(layer(x), nn.functional.leaky_relu(x, 0.25))
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    p, n = (v.detach().view(-1, 1, 1) for v in (layer.positive, layer.negative))
    torch.testing.assert_close(layer(x), p * torch.relu(x) - n * torch.relu(-x))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5, 5)])
def test_it_trains_with_the_gradients_of_plain_autograd(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    layer = Maxout(3)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x, g = torch.randn(shape), torch.randn(shape)
    x.view(-1)[0] = 0.0
    results = []
    for training in (True, False):
        layer.train(training).zero_grad()
        leaf = (x.contiguous(memory_format=layout) if x.dim() == 4 else x.clone()).requires_grad_()
        y = layer(leaf)
        y.backward(g)
        assert leaf.grad is not None
        results.append([y.detach(), leaf.grad, layer.positive.grad, layer.negative.grad])
    trained, plain = results
    torch.testing.assert_close(trained[0], plain[0])
    differs = (x != 0).to(g)  # plain autograd lets both sides act at 0
    torch.testing.assert_close(trained[1] * differs, plain[1] * differs)
    for ours, theirs in zip(trained[2:], plain[2:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
