"""The trained PReLU is torch's."""

import pytest
import torch
from torch import nn

from bnnconvert.layers.prelu import ChannelPReLU


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5, 5)])
def test_it_trains_with_the_gradients_of_torch_s(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    ours, theirs = ChannelPReLU(3), nn.PReLU(3)
    nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    x, g = torch.randn(shape), torch.randn(shape)
    x.view(-1)[0] = 0.0
    results = []
    for layer in (ours, theirs):
        leaf = (x.contiguous(memory_format=layout) if x.dim() == 4 else x.clone()).requires_grad_()
        y = layer(leaf)
        y.backward(g)
        results.append((y.detach(), leaf.grad, layer.weight.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(ours.eval()(x), theirs(x))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
