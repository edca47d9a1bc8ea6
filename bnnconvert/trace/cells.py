"""Single recurrent cells as two linear layers and the step between their products. EXACT.

of each cell     ih and hh, called wherever the cell was, and the step
"""

import operator
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from bnnconvert.graph import calls_of, module_of, shape_of
from bnnconvert.layers.recurrent import STEPS
from bnnconvert.trace.attention import linear_of


def expand_cells(graph: GraphModule) -> int:
    """Write recurrent cells as linear layers where that is possible; how many."""
    found = {str(n.target): m for n in graph.graph.nodes if isinstance(m := module_of(graph, n), nn.RNNCellBase)}
    able = {path: module for path, module in found.items() if why_whole_cell(graph, path, module) is None}
    for path, module in able.items():
        _write(graph, path, module)
    return len(able)


def why_whole_cell(graph: GraphModule, path: str, module: nn.RNNCellBase) -> str | None:
    """What keeps a recurrent cell from being linear layers; None where nothing does."""
    if type(module) not in (nn.LSTMCell, nn.GRUCell, nn.RNNCell):
        return f"there is no binary {type(module).__name__}"
    if any(len(shape_of(node.all_input_nodes[0]) or ()) != 2 for node in calls_of(graph, path)):
        return "its input is no batch of vectors"
    return None


def _write(graph: GraphModule, path: str, module: nn.RNNCellBase) -> None:
    calls, holder = calls_of(graph, path), nn.Module()
    holder.add_module("ih", linear_of(module.weight_ih, module.bias_ih))
    holder.add_module("hh", linear_of(module.weight_hh, module.bias_hh))
    holder.add_module("step", STEPS[_mode(module)]())
    owner, _, leaf = path.rpartition(".")
    graph.get_submodule(owner).add_module(leaf, holder.train(module.training))
    for node in calls:
        with graph.graph.inserting_before(node):
            made = _call(graph, node, module)
        node.replace_all_uses_with(made)
        graph.graph.erase_node(node)


def _mode(module: nn.RNNCellBase) -> str:
    if isinstance(module, nn.RNNCell):
        return f"RNN_{module.nonlinearity.upper()}"
    return "LSTM" if isinstance(module, nn.LSTMCell) else "GRU"


def _call(graph: GraphModule, node: Node, module: nn.RNNCellBase) -> Node:
    """One step; its value is what the cell's was, a pair for an LSTM."""
    path, is_pair = str(node.target), isinstance(module, nn.LSTMCell)
    given: dict[str, Any] = dict(zip(("input", "hx"), node.args, strict=False)) | dict(node.kwargs)

    def made(step: Node) -> Node:
        step.meta.update(node.meta)
        return step

    def item(pair: Any, number: int) -> Any:
        if isinstance(pair, tuple | list):
            return pair[number]
        return made(graph.graph.call_function(operator.getitem, (pair, number)))

    x = made(graph.graph.call_module(f"{path}.ih", (given["input"],)))
    hx = given.get("hx")
    states: tuple[Any, ...] = ()
    if hx is not None:
        states = (item(hx, 0), item(hx, 1)) if is_pair else (hx,)
        before = made(graph.graph.call_module(f"{path}.hh", (states[0],)))
    elif module.bias:  # the product with a state of 0
        before = made(graph.graph.get_attr(f"{path}.hh.bias"))
    else:
        before = made(graph.graph.call_function(torch.zeros_like, (x,)))
    step = made(graph.graph.call_module(f"{path}.step", (x, before, *states)))
    return step if is_pair else item(step, 0)
