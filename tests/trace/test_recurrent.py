"""Recurrent layers written out as their steps: the same values, binary gate matrices, packed files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnnconvert
from bnnconvert import Session
from bnnconvert.errors import UsageError
from bnnconvert.exporters.verify import verify
from bnnconvert.trace import recurrent
from bnnconvert.trace.dataflow import layer_facts
from bnnconvert.trace.tracer import trace

KINDS: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
    "rnn": (nn.RNN, {}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
    "without bias": (nn.LSTM, {"bias": False}),
    "gru without bias": (nn.GRU, {"bias": False}),
    "both ways": (nn.GRU, {"bidirectional": True}),
    "two layers": (nn.LSTM, {"num_layers": 2, "dropout": 0.5, "bidirectional": True}),
    "time first": (nn.LSTM, {"batch_first": False}),
}


class Reader(nn.Module):
    """Reads a sequence; the answer comes from every step and from the last state."""

    def __init__(self, name: str) -> None:
        super().__init__()
        kind, options = KINDS[name]
        self.embed, self.norm = nn.Linear(3, 8), nn.BatchNorm1d(5)
        self.cell = kind(8, 16, **{"batch_first": True, **options})
        self.ways = 2 if self.cell.bidirectional else 1
        self.head, self.state = nn.Linear(16 * self.ways, 4), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x))
        if not self.cell.batch_first:
            y, hidden = self.cell(x.transpose(0, 1))
            y = y.transpose(0, 1)
        else:
            y, hidden = self.cell(x)
        last = hidden[0][-1] if isinstance(self.cell, nn.LSTM) else hidden[-1]
        return self.head(y).mean(1) + self.state(last)


@pytest.mark.parametrize("name", KINDS)
def test_steps_give_what_the_layer_gives_and_their_matrices_are_linear_layers(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Reader(name).eval(), torch.randn(3, 5, 3)
    graph = trace(net, (x,))
    torch.testing.assert_close(graph(x), net(x))
    assert {id(p) for p in graph.parameters()} == {id(p) for p in net.parameters()}
    assert not any(f.obstacle for f in layer_facts(graph))
    for recipe in ("xnor", "bwn"):
        student = bnnconvert.convert(net, recipe, input_shape=(1, 5, 3))
        gates = [p for p in student.plan.layers if p.facts.path.startswith("cell.")]
        assert len(gates) == 2 * net.cell.num_layers * net.ways
        if name != "relu":  # its state has one sign only
            assert all(p.decision != "float" for p in gates)
            assert not [n for n in student.model.graph.nodes if "hh_" in str(n.target) and "norm" in str(n.target)]
        student.model.train()(x).square().sum().backward()
        path = tmp_path / f"{recipe}.packed.safetensors"
        bnnconvert.export(student, path)
        compared = verify(student.model, Session(path), [x])
        assert compared.passed, compared.failure
        assert compared.largest_difference < 1e-4


def test_a_state_may_be_given() -> None:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.cell, self.head = nn.Linear(4, 8), nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            start = self.first(x[:, 0])[None]
            y, (h, c) = self.cell(self.first(x), (start, start.tanh()))
            return self.head(y[:, -1] + h[0] + c[0])

    torch.manual_seed(0)
    net, x = Given().eval(), torch.randn(3, 6, 4)
    graph = trace(net, (x,))
    assert "cell.hh_l0" in {f.path for f in layer_facts(graph)}
    torch.testing.assert_close(graph(x), net(x))


def test_a_sequence_of_another_length_is_refused() -> None:
    torch.manual_seed(0)
    student = bnnconvert.convert(Reader("gru").eval(), "bwn", input_shape=(1, 5, 3)).model
    with pytest.raises(UsageError, match="written out for 5 time steps and gets 6"):
        student.get_submodule("cell.steps_l0")(torch.zeros(2, 6, 48))


class Whole(nn.Module):
    def __init__(self, cell: nn.Module, *, both: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.cell, self.head = nn.Linear(4, 8), nn.Linear(8, 8), cell, nn.Linear(8, 2)
        self.both = both

    def forward(self, x: Tensor) -> Any:
        made = self.cell(self.second(self.first(x)))
        if self.both:
            return made, self.head(made[0])
        return self.head(made[0] if isinstance(made, tuple) else made)


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize(
    ("net", "shape", "why"),
    [
        (Whole(nn.LSTM(8, 16, proj_size=8, batch_first=True)), (5, 4), "projects its state"),
        (Whole(nn.GRU(8, 8, batch_first=True)), (9, 4), "9 time steps, and at most 8"),
        (Whole(nn.GRU(8, 8, batch_first=True), both=True), (5, 4), "passed on together"),
    ],
)
def test_what_cannot_be_written_out_stays_whole_and_says_why(
    net: nn.Module, shape: tuple[int, ...], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recurrent, "MOST_STEPS", 8)
    layers = {p.facts.path: p.reason for p in bnnconvert.convert(net, "xnor", input_shape=(1, *shape)).plan.layers}
    assert why in layers["cell"]
