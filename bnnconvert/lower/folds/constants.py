"""Constants computed once: what a model makes of its parameters and buffers alone is one tensor of the program.

    y = f(c_1, c_2, ...)   c_i parameters or buffers        becomes the constant y

Position biases looked up in a table are the usual case. A result larger than what it is made of stays a call.
"""

import operator
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from bnnconvert.graph import free_path, stored

_ANY_SIZE = {operator.getitem, torch.gather, torch.index_select, "index_select", "gather"}
"""Look-ups: packed programs have no table to look into, so the result is stored whatever its size."""


class ConstantFold:
    """Calls of functions and methods on constants."""

    def find(self, deployed: GraphModule) -> Iterator[Node]:
        """Sites in order; one that reads another's result is found when that is a constant."""
        constant: set[Node] = set()
        for node in list(deployed.graph.nodes):
            if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
                continue
            if all(n in constant or n.op == "get_attr" for n in node.all_input_nodes) and not _is_random(node):
                constant.add(node)
                yield node

    def apply(self, deployed: GraphModule, site: Node) -> None:
        """Put the result in the call's place."""
        if any(n.op != "get_attr" for n in site.all_input_nodes):
            return  # one of them stays a call
        inputs = {n: stored(deployed, str(n.target)) for n in site.all_input_nodes}
        args, kwargs = map_arg((site.args, site.kwargs), inputs.__getitem__)
        with torch.no_grad():
            result = getattr(args[0], str(site.target))(*args[1:], **kwargs) if site.op == "call_method" else None
            result = site.target(*args, **kwargs) if callable(site.target) else result
        if not isinstance(result, Tensor):
            return
        large = result.numel() > sum(t.numel() for t in inputs.values())
        if large and site.target not in _ANY_SIZE:
            return
        name = free_path(deployed, f"constant_{site.name}")
        deployed.register_buffer(name, result.detach().clone().contiguous())
        with deployed.graph.inserting_before(site):
            made = deployed.graph.get_attr(name)
        made.meta = dict(site.meta)
        site.replace_all_uses_with(made)
        deployed.graph.erase_node(site)


def _is_random(node: Node) -> bool:
    return "rand" in str(node.target) or "dropout" in str(node.target)
