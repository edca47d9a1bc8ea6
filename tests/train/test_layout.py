import pytest
import torch
from torch import nn

from bnnconvert.train.layout import keep_gradient_layout, use_layout


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(1), nn.AvgPool2d(4), nn.Flatten()])
def test_gradients_keep_the_layout_of_the_stream_and_their_values(pool: nn.Module) -> None:
    def gradient(keep: bool) -> torch.Tensor:
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(3)
        model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), norm, nn.Hardtanh(), pool)
        use_layout(model, torch.channels_last)
        handles = keep_gradient_layout(model) if keep else []
        seen: list[torch.Tensor] = []
        norm.register_forward_hook(lambda _m, _i, y: y.register_hook(seen.append) and None)
        model(torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)).square().sum().backward()
        for handle in handles:
            handle.remove()
        assert not pool._forward_pre_hooks
        return seen[0]

    kept = gradient(True)
    assert kept.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(kept, gradient(False))
