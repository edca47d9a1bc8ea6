"""The zoo in small: every kind of network converts by default, 1-bit and weight-only recipes, trains and packs."""

from pathlib import Path

import pytest
import torch
from torch.utils import _pytree as pytree

import bnnconvert
from bnnconvert import Session
from bnnconvert.exporters.verify import verify
from tests.architectures import ARCHITECTURES
from tests.networks import randomise

PROPERTIES = ("first layer", "last layer", "1x1 shortcut", "depthwise", "its binary input would be constant")
"""Reasons for a layer to stay float; each names something of the model."""


@pytest.mark.parametrize("recipe", ["auto", "xnor", "bwn"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture(name: str, recipe: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, shape = ARCHITECTURES[name]
    net, x = randomise(build()), torch.randn(3, *shape)
    student = bnnconvert.convert(net, recipe, input_shape=(1, *shape))
    assert student.teacher.meta["rung"] in ("symbolic", "along")
    for original, traced in zip(*(pytree.tree_leaves(model(x)) for model in (net, student.teacher)), strict=True):
        torch.testing.assert_close(traced, original)
    decisions = {layer.facts.path: layer for layer in student.plan.layers}
    assert any(layer.decision != "float" for layer in decisions.values())
    for path, layer in decisions.items():
        assert layer.decision != "float" or layer.reason.startswith(PROPERTIES), (path, layer.reason)
    sum(y.square().sum() for y in pytree.tree_leaves(student.model.train()(x))).backward()
    for path, layer in decisions.items():
        if layer.decision != "float":
            gradient = student.model.get_submodule(path).weight.grad
            assert gradient is not None, path
            assert bool(gradient.isfinite().all()), path
    report = bnnconvert.export(student, tmp_path / "net.packed.safetensors")
    assert report.tensor_bytes == student.plan.predicted_bytes
    compared = verify(student.model, Session(tmp_path / "net.packed.safetensors"), [x])
    assert compared.passed, compared.failure
    assert compared.differing_samples == 0
    assert compared.largest_difference < 1e-4
