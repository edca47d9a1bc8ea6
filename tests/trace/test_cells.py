"""Recurrent cells in a loop of the user's own: linear layers and a step, the same values, packed files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnnconvert
from bnnconvert import Session
from bnnconvert.exporters.verify import verify
from bnnconvert.trace.dataflow import layer_facts
from bnnconvert.trace.tracer import trace

CELLS: dict[str, tuple[type[nn.RNNCellBase], dict[str, Any]]] = {
    "lstm": (nn.LSTMCell, {}),
    "gru": (nn.GRUCell, {}),
    "rnn": (nn.RNNCell, {}),
    "relu": (nn.RNNCell, {"nonlinearity": "relu"}),
    "without bias": (nn.LSTMCell, {"bias": False}),
    "gru without bias": (nn.GRUCell, {"bias": False}),
}


class Loop(nn.Module):
    """Steps through a sequence; the first step has no state, the others that of the step before, whole or in parts."""

    def __init__(self, name: str, *, whole: bool = True) -> None:
        super().__init__()
        kind, options = CELLS[name]
        self.embed, self.cell, self.head = nn.Linear(3, 8), kind(8, 16, **options), nn.Linear(16, 4)
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor:
        state, seen = None, []
        for step in self.embed(x).unbind(1):
            state = self.cell(step, state)
            if isinstance(self.cell, nn.LSTMCell):
                h, c = state
                state = state if self.whole else (h, c)
                seen.append(h)
            else:
                seen.append(state)
        return self.head(torch.stack(seen).mean(0))


@pytest.mark.parametrize(("name", "whole"), [*((name, True) for name in CELLS), ("lstm", False)])
def test_a_cell_is_two_linear_layers_and_a_step(name: str, whole: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Loop(name, whole=whole).eval(), torch.randn(3, 4, 3)
    graph = trace(net, (x,))
    torch.testing.assert_close(graph(x), net(x))
    assert {id(p) for p in graph.parameters()} == {id(p) for p in net.parameters()}
    assert {f.path for f in layer_facts(graph) if not f.obstacle} == {"embed", "cell.ih", "cell.hh", "head"}
    for recipe in ("xnor", "bwn"):
        student = bnnconvert.convert(net, recipe, input_shape=(1, 4, 3))
        decisions = {p.facts.path: p.decision for p in student.plan.layers}
        assert decisions["cell.ih"] != "float"
        assert decisions["cell.hh"] != "float" or name == "relu"  # its state has one sign only
        student.model.train()(x).square().sum().backward()
        path = tmp_path / f"{recipe}.packed.safetensors"
        bnnconvert.export(student, path)
        compared = verify(student.model, Session(path), [x])
        assert compared.passed, compared.failure
        assert compared.largest_difference < 1e-4
