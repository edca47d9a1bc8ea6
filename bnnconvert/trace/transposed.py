"""Transposed convolutions whose kernel is no multiple of their stride as up to 2, 4 or 8 convolutions. EXACT.

taps_2x2, taps_2x1, ...     a convolution for all phases with so many taps (`bnnconvert.layers.phases`)
join, interleave            all phases side by side, then in their places

Those whose kernel is a multiple are one convolution, which the rewrite `as-images` puts in their place.
"""

from typing import Any

from torch import nn
from torch.fx import GraphModule, Node

from bnnconvert.graph import is_called_once, module_of, shape_of
from bnnconvert.layers.axes import Interleave, JoinPhases
from bnnconvert.layers.phases import Transposed, convolution_of, phases_of


def expand_transposed(graph: GraphModule) -> int:
    """Write such transposed convolutions as convolutions where that is possible; how many."""
    found = [(n, m) for n in graph.graph.nodes if isinstance(m := module_of(graph, n), Transposed)]
    able = [(n, m) for n, m in found if len(phases_of(m)) > 1 and why_whole_transposed(graph, n, m) is None]
    for node, module in able:
        _write(graph, node, module)
    return len(able)


def why_whole_transposed(graph: GraphModule, node: Node, module: Transposed) -> str | None:
    """What keeps a transposed convolution from being a set of convolutions; None where nothing does."""
    kernel, stride = module.kernel_size, module.stride
    padding: Any = module.padding
    if set(module.dilation) != {1}:
        return f"its dilation is {module.dilation}"
    if any(more > cut for more, cut in zip(module.output_padding, padding, strict=True)):
        return f"its output is padded by {module.output_padding}, beyond what it computes"
    if any(taps < step for taps, step in zip(kernel, stride, strict=True)):
        return f"its kernel {kernel} is smaller than its stride {stride}"
    if len(phases_of(module)) > 1 and not is_called_once(graph, node):
        return f"it is called more than once, and its kernel {kernel} is no multiple of its stride {stride}"
    return None


def _write(graph: GraphModule, node: Node, module: Transposed) -> None:
    path, shape, holder = str(node.target), shape_of(node), nn.Module()
    assert shape is not None
    owner, _, leaf = path.rpartition(".")
    graph.get_submodule(owner).add_module(leaf, holder)
    kinds = phases_of(module)
    (x,) = node.all_input_nodes

    def call(name: str, made: nn.Module, *inputs: Node) -> Node:
        holder.add_module(name, made)
        step = graph.graph.call_module(f"{path}.{name}", inputs)
        step.meta.update(node.meta)
        return step

    with graph.graph.inserting_before(node):
        names = ["taps_" + "x".join(str(phase.taps) for phase in phases) for phases in kinds]
        parts = [call(name, convolution_of(module, p), x) for name, p in zip(names, kinds, strict=True)]
        split = tuple(any(phases[axis].first for phases in kinds) for axis in range(len(shape) - 2))
        counts = tuple(tuple(phase.count for phase in phases) for phases in kinds)
        joined = call("join", JoinPhases(counts, split), *parts)
        start: Any = module.padding
        whole = call("interleave", Interleave(module.stride, start, shape[2:]), joined)
    holder.train(module.training)
    node.replace_all_uses_with(whole)
    graph.graph.erase_node(node)
