"""Where a node stands relative to the binary layers, for the rewrites that treat activations."""

from collections.abc import Callable

from torch.fx import GraphModule, Node

from bnnconvert.graph import PASS_THROUGH, WEIGHT_LAYERS, is_call_of, module_of
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.values.plan import Plan


def feeds_only_signs(graph: GraphModule, node: Node) -> bool:
    """Whether all readers, looking through pass-through modules, are signs of binary layers."""
    readers = [u for user in node.users for u in _through(graph, user)]
    return bool(readers) and all(_is_sign(graph, u) for u in readers)


def touches_binary(graph: GraphModule, node: Node) -> bool:
    """Whether the node feeds a sign or follows a binary layer with no other weight layer in between."""
    return feeds_sign(graph, node) or follows_binary(graph, node)


def feeds_sign(graph: GraphModule, node: Node) -> bool:
    """Whether a sign comes after the node with no other weight layer in between."""
    return _reaches(graph, node, lambda n: list(n.users), _is_sign)


def follows_binary(graph: GraphModule, node: Node) -> bool:
    """Whether a binary layer comes before the node with no other weight layer in between."""
    return _reaches(graph, node, lambda n: n.all_input_nodes, _is_sign)


def follows_first(graph: GraphModule, node: Node, plan: Plan) -> bool:
    """Whether a first layer comes before the node, and signs after it, with no other weight layer in between."""

    def is_first(_: GraphModule, n: Node) -> bool:
        layer = plan.layer(str(n.target)) if n.op == "call_module" else None
        return layer is not None and layer.facts.is_first

    return _reaches(graph, node, lambda n: n.all_input_nodes, is_first) and feeds_sign(graph, node)


def _is_sign(graph: GraphModule, node: Node) -> bool:
    module = module_of(graph, node)
    return isinstance(module, BinaryLayer) and not module.is_weight_only


def _through(graph: GraphModule, node: Node) -> list[Node]:
    if not is_call_of(graph, node, PASS_THROUGH):
        return [node]
    return [u for user in node.users for u in _through(graph, user)]


def _reaches(
    graph: GraphModule,
    start: Node,
    step: Callable[[Node], list[Node]],
    goal: Callable[[GraphModule, Node], bool],
) -> bool:
    todo, seen = step(start), set[Node]()
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if goal(graph, node):
            return True
        if not is_call_of(graph, node, WEIGHT_LAYERS):
            todo += step(node)
    return False
