"""Recurrent layers as their steps, so that their gate matrices are linear layers like any other. EXACT.

of each layer and direction     ih (all time steps at once), steps, then per step hh and the step itself
"""

import operator
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from bnnconvert.graph import is_called_once, module_of, shape_of
from bnnconvert.layers.recurrent import STEPS, Steps
from bnnconvert.trace.attention import linear_of

MOST_STEPS = 512
"""Time steps that are written out."""


def expand_recurrent(graph: GraphModule) -> int:
    """Write recurrent layers as their steps where that is possible; how many."""
    found = [(n, m) for n in graph.graph.nodes if isinstance(m := module_of(graph, n), nn.RNNBase)]
    able = [(node, module) for node, module in found if why_whole_recurrent(graph, node, module) is None]
    for node, module in able:
        _Expansion(graph, node, module).write()
    return len(able)


def why_whole_recurrent(graph: GraphModule, node: Node, module: nn.RNNBase) -> str | None:
    """What keeps a recurrent layer from being written as its steps; None where nothing does."""
    shape = shape_of(node.all_input_nodes[0])
    if not is_called_once(graph, node):
        return "it is called more than once"
    if shape is None or len(shape) != 3:
        return "its input is no batch of sequences"
    if module.proj_size:
        return "it projects its state"
    steps = shape[1 if module.batch_first else 0]
    if steps > MOST_STEPS:
        return f"it has {steps} time steps, and at most {MOST_STEPS} are written out"
    hidden = [user for user in node.users if user.args[1:] == (1,)]
    if any(user.target is not operator.getitem for user in node.users):
        return "its output and its state are passed on together"
    if isinstance(module, nn.LSTM) and any(u.target is not operator.getitem for h in hidden for u in h.users):
        return "its two states are passed on together"
    return None


class _Expansion:
    def __init__(self, graph: GraphModule, node: Node, module: nn.RNNBase) -> None:
        self.graph, self.node, self.module, self.path = graph, node, module, str(node.target)
        self.holder = nn.Module()
        given: dict[str, Any] = dict(zip(("input", "hx"), node.args, strict=False)) | dict(node.kwargs)
        self.x, self.hx = given["input"], given.get("hx")
        shape = shape_of(self.x)
        assert shape is not None
        self.count = shape[1 if module.batch_first else 0]
        self.starts: list[Any] = []
        """Initial h, and for an LSTM c. Shapes: (layers x directions, N, H)."""

    def write(self) -> None:
        """Put the steps in the layer's place."""
        owner, _, leaf = self.path.rpartition(".")
        self.graph.get_submodule(owner).add_module(leaf, self.holder)
        with self.graph.graph.inserting_before(self.node):
            self.starts = self._initial()
            x: Node = self.x if self.module.batch_first else self._method("transpose", self.x, 0, 1)
            ends: list[tuple[Node, ...]] = []
            for number in range(self.module.num_layers):
                if number and self.module.dropout:
                    x = self._call(f"dropout_l{number}", nn.Dropout(self.module.dropout), x)
                ways = ["", "_reverse"] if self.module.bidirectional else [""]
                made = [self._direction(x, f"l{number}{way}", len(ends) + i) for i, way in enumerate(ways)]
                ends += [states for _, states in made]
                sequences = [self._function(torch.stack, hs, 1) for hs, _ in made]
                x = sequences[0] if len(sequences) == 1 else self._function(torch.cat, sequences, -1)
            if not self.module.batch_first:
                x = self._method("transpose", x, 0, 1)
            last = [self._function(torch.stack, list(states), 0) for states in zip(*ends, strict=True)]
        for user in list(self.node.users):
            self._replace(user, x, last)
        self.graph.graph.erase_node(self.node)

    def _initial(self) -> list[Any]:
        if self.hx is None:
            return []
        if isinstance(self.hx, tuple | list):
            return list(self.hx)
        is_pair = isinstance(self.module, nn.LSTM)
        return [self._function(operator.getitem, self.hx, i) for i in range(2)] if is_pair else [self.hx]

    def _direction(self, x: Node, name: str, number: int) -> tuple[list[Node], tuple[Node, ...]]:
        """The h of every time step in the order of time, and the last states."""
        weights = {part: getattr(self.module, f"weight_{part}_{name}") for part in ("ih", "hh")}
        biases = {part: getattr(self.module, f"bias_{part}_{name}", None) for part in ("ih", "hh")}
        gates = self._call(f"ih_{name}", linear_of(weights["ih"], biases["ih"]), x)
        parts = self._call(f"steps_{name}", Steps(self.count), gates)
        self.holder.add_module(f"hh_{name}", linear_of(weights["hh"], biases["hh"]).train(self.module.training))
        states = tuple(self._function(operator.getitem, start, number) for start in self.starts)
        order = range(self.count - 1, -1, -1) if name.endswith("_reverse") else range(self.count)
        found: dict[int, Node] = {}
        for time in order:
            step = self._function(operator.getitem, parts, time)
            states = self._step(name, step, states)
            found[time] = states[0]
        return [found[time] for time in sorted(found)], states

    def _step(self, name: str, x: Node, states: tuple[Node, ...]) -> tuple[Node, ...]:
        module = self.module
        hh, bias = f"hh_{name}", module.bias
        before: Any
        if states:
            before = self._called(hh, states[0])
        else:  # the product with a state of 0
            before = self._stored(f"{hh}.bias") if bias else self._function(torch.zeros_like, x)
        if not hasattr(self.holder, f"step_{name}"):
            self.holder.add_module(f"step_{name}", STEPS[module.mode]())
        made = self._called(f"step_{name}", x, before, *states)
        return tuple(self._function(operator.getitem, made, i) for i in range(2 if module.mode == "LSTM" else 1))

    def _replace(self, user: Node, sequence: Node, last: list[Node]) -> None:
        """Give a reader of the layer's tuple what it reads."""
        if user.args[1] == 0:
            user.replace_all_uses_with(sequence)
        elif len(last) == 1:
            user.replace_all_uses_with(last[0])
        else:
            for reader in list(user.users):
                reader.replace_all_uses_with(last[reader.args[1]])  # type: ignore[index]
                self.graph.graph.erase_node(reader)
        self.graph.graph.erase_node(user)

    # Nodes.

    def _call(self, name: str, module: nn.Module, *inputs: Node) -> Node:
        self.holder.add_module(name, module.train(self.module.training))
        return self._called(name, *inputs)

    def _called(self, name: str, *inputs: Node) -> Node:
        return self._made(self.graph.graph.call_module(f"{self.path}.{name}", inputs))

    def _function(self, function: Any, *arguments: Any) -> Node:
        return self._made(self.graph.graph.call_function(function, arguments))

    def _method(self, name: str, *arguments: Any) -> Node:
        return self._made(self.graph.graph.call_method(name, arguments))

    def _stored(self, name: str) -> Node:
        return self._made(self.graph.graph.get_attr(f"{self.path}.{name}"))

    def _made(self, node: Node) -> Node:
        node.meta.update(self.node.meta)
        return node
