"""Attention modules come apart into their projections and the product between them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnnconvert
from bnnconvert.trace.dataflow import layer_facts
from bnnconvert.trace.tracer import trace


class Net(nn.Module):
    """One attention module between two linear layers; `how` says how it is called."""

    def __init__(self, how: str, **options: Any) -> None:
        super().__init__()
        self.how, self.embed, self.head = how, nn.Linear(6, 8), nn.Linear(8, 3)
        if how == "cross":
            options |= {"kdim": 6, "vdim": 6}
        self.attention = nn.MultiheadAttention(8, 2, **options)
        self.register_buffer("mask", torch.ones(5, 5).triu(1).bool())
        if self.attention.out_proj.bias is not None:
            nn.init.normal_(self.attention.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        if self.how == "self":
            y, _ = self.attention(y, y, y, need_weights=False)
        elif self.how == "weights":
            y, w = self.attention(y, y, y)
            y = y * w.mean()
        elif self.how == "causal":
            y = self.attention(y, y, y, need_weights=False, attn_mask=self.mask)[0]
        elif self.how == "float mask":
            y = self.attention(y, y, y, attn_mask=self.mask.float() * -3)[0]
        elif self.how == "padding":
            y = self.attention(y, y, y, key_padding_mask=x[..., 0] > 9)[0]
        else:
            y = self.attention(y, x, x)[0]
        return self.head(y)


@pytest.mark.parametrize("how", ["self", "causal", "float mask", "cross"])
@pytest.mark.parametrize("options", [{"batch_first": True}, {"bias": False}], ids=["samples first", "tokens first"])
def test_projections_are_linear_layers(how: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = Net(how, **options).eval()
    x = torch.randn(3, 5, 6) if options.get("batch_first") else torch.randn(5, 3, 6)
    graph = trace(net, (x,))
    torch.testing.assert_close(graph(x), net(x))
    inside = ["q_proj", "k_proj", "v_proj"] if how == "cross" else ["in_proj"]
    wanted = ["embed", *(f"attention.{name}" for name in (*inside, "out_proj")), "head"]
    assert sorted(f.path for f in layer_facts(graph)) == sorted(wanted)
    assert all(f.obstacle is None for f in layer_facts(graph))


@pytest.mark.parametrize(("how", "reason"), [("weights", "weights are read"), ("padding", "a padding mask")])
def test_what_cannot_come_apart_stays_whole_and_says_why(how: str, reason: str) -> None:
    net, x = Net(how, batch_first=True).eval(), torch.randn(2, 5, 6)
    facts = {f.path: f.obstacle for f in layer_facts(trace(net, (x,)))}
    assert facts.keys() == {"embed", "attention", "head"}
    assert reason in (facts["attention"] or "")


def test_layers_of_torchs_transformer_are_binary_and_export(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    net = nn.Sequential(nn.Linear(6, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3))
    x = torch.randn(2, 5, 6)
    student = bnnconvert.convert(net, "bwn", example_inputs=(x,))
    names = ("self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2")
    binary = {p.facts.path for p in student.plan.layers if p.decision == "weight-only"}
    assert binary == {f"1.layers.{i}.{name}" for i in range(2) for name in names}
    bnnconvert.export(student, tmp_path / "net.packed.safetensors")
    actual = bnnconvert.Session(tmp_path / "net.packed.safetensors").run(x.numpy())
    torch.testing.assert_close(torch.from_numpy(actual), student.model.eval()(x).detach(), rtol=1e-4, atol=1e-5)
