"""Facts about fx graphs of modules that several stages ask for: modules behind nodes, chains, shapes, edits.

Guard on the module, not on the node: a module called twice must not be edited for one of its calls.
"""

import copy
import operator
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from heapq import heapify, heappop, heappush
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from bnnconvert.layers.base import BinaryLayer
from bnnconvert.layers.maxout import Maxout
from bnnconvert.layers.rprelu import RPReLU
from bnnconvert.layers.vote import Vote

_PARTS: set[Any] = {
    "view",
    "view_as",
    "transpose",
    "swapaxes",
    "permute",
    "movedim",
    "unsqueeze",
    "squeeze",
    "t",
    "detach",
}
_PARTS |= {"select", "narrow", "unfold", "diagonal", "expand", operator.getitem, getattr}
"""What may give a part of a tensor, or the same in another order, rather than a new one."""
_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem)
M = TypeVar("M", bound=nn.Module)

RELUS = (nn.ReLU, nn.ReLU6)
ACTIVATIONS = (*RELUS, nn.Hardtanh, nn.LeakyReLU, nn.PReLU, RPReLU, Maxout)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
PASS_THROUGH = (nn.Identity, nn.Dropout, nn.Dropout2d)
MEMBER, VOTE = "member", "vote"
"""Paths of an ensemble's members, numbered from 1, and of their vote."""
_PRODUCTS = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.MultiheadAttention)
WEIGHT_LAYERS = (*_PRODUCTS, nn.Embedding, nn.RNNBase, nn.RNNCellBase, BinaryLayer)


def module_of(graph: GraphModule, node: object) -> nn.Module | None:
    """Module that `node` calls, or None for any other kind of node."""
    if isinstance(node, Node) and node.op == "call_module":
        return graph.get_submodule(str(node.target))
    return None


def stored(graph: GraphModule, path: str) -> Any:
    """Parameter, buffer or other attribute at `path`."""
    owner, _, leaf = path.rpartition(".")
    return getattr(graph.get_submodule(owner) if owner else graph, leaf)


def is_call_of(graph: GraphModule, node: object, types: type[nn.Module] | tuple[type[nn.Module], ...]) -> bool:
    """Whether `node` calls a module of one of `types`."""
    return isinstance(module_of(graph, node), types)


def is_add(node: object) -> bool:
    """Whether `node` adds two tensors of one shape."""
    return (
        isinstance(node, Node)
        and node.op == "call_function"
        and node.target is operator.add
        and len(node.args) == 2
        and all(isinstance(a, Node) for a in node.args)
        and len({shape_of(a) for a in node.all_input_nodes}) == 1
    )


def calls_of(graph: GraphModule, target: str) -> list[Node]:
    """All nodes that call the module at `target`, aliases under other names included."""
    module = graph.get_submodule(target)
    return [n for n in graph.graph.nodes if module_of(graph, n) is module]


def all_calls(graph: GraphModule) -> dict[nn.Module, list[Node]]:
    """The nodes that call each module, in order; what `calls_of` says of one."""
    calls: dict[nn.Module, list[Node]] = {}
    for node in graph.graph.nodes:
        module = module_of(graph, node)
        if module is not None:
            calls.setdefault(module, []).append(node)
    return calls


def writes(node: Node) -> bool:
    """Whether a node changes its first argument, as `x.add_(1)` and `x += 1` do, besides giving it back."""
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "")
    return (
        node.target in _IN_PLACE or (name.endswith("_") and not name.endswith("__")) or bool(node.kwargs.get("inplace"))
    )


def written_by(node: Node) -> Iterator[Node]:
    """What a node that writes changes: its first argument, and what that may be a part of."""
    into = node.args[0] if node.args else None
    while isinstance(into, Node):
        yield into
        into = into.args[0] if into.target in _PARTS else None


def tidy(graph: GraphModule) -> None:
    """Drop what nothing reads and what nothing calls, check the graph, and generate its code."""
    graph.graph.eliminate_dead_code(lambda node: node.is_impure() or writes(node))
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    graph.recompile()


def is_called_once(graph: GraphModule, node: Node) -> bool:
    """Whether the module behind `node` is called there and nowhere else."""
    return len(calls_of(graph, str(node.target))) == 1


def input_of(node: Node) -> Node:
    """First input of a node."""
    return node.all_input_nodes[0]


def only_user(node: Node) -> Node | None:
    """The one node that reads `node`, or None if several or none do."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def shape_of(node: Node) -> tuple[int, ...] | None:
    """Shape of the tensor that `node` gives on the example input, or None if it gives something else."""
    shape: tuple[int, ...] | None = node.meta.get("shape")
    return shape


def skip_back(graph: GraphModule, node: Node, types: tuple[type[nn.Module], ...]) -> Node:
    """First node at or before `node` that is not a module of `types`."""
    while is_call_of(graph, node, types):
        node = input_of(node)
    return node


def binary_inputs(graph: GraphModule) -> Iterator[Node]:
    """Nodes of binary layers that binarize their input."""
    for node in graph.graph.nodes:
        module = module_of(graph, node)
        if isinstance(module, BinaryLayer) and not module.is_weight_only:
            yield node


def inner_graphs(graph: GraphModule) -> Iterator[tuple[str, GraphModule]]:
    """Graphs inside modules of `graph` that are called as they are, with their paths; none inside those."""
    for path in graph.meta.get("inner", ()):
        part = graph.get_submodule(path)
        assert isinstance(part, GraphModule)
        yield path, part


def inputs_inside(graph: GraphModule, inputs: tuple[Tensor, ...]) -> dict[str, tuple[Tensor, ...]]:
    """What each inner graph is given first when the whole runs on `inputs`, in evaluation mode."""
    found: dict[str, tuple[Tensor, ...]] = {}
    with ExitStack() as handles, torch.no_grad():
        for path, part in inner_graphs(graph):
            hook = part.register_forward_pre_hook(lambda _m, args, at=path: found.setdefault(at, args) and None)
            handles.callback(hook.remove)
        if graph.meta.get("inner"):
            mode = graph.training
            graph.eval()(*inputs)
            graph.train(mode)
    return found


def path_beside(graph: GraphModule, node: Node, name: str) -> str:
    """A free path for a module `name` in the user's module whose code `node` comes from."""
    scope = scope_of(node)
    return free_path(graph, f"{scope}.{name}" if scope else name)


def scope_of(node: Node) -> str:
    """Path of the user's module whose code has the call; empty for the model's own."""
    return str(next(reversed(node.meta.get("nn_module_stack") or {"": None}), ""))


def free_path(graph: GraphModule, wanted: str) -> str:
    """`wanted`, or `wanted_1`, `wanted_2`, ... : the first path at which no module or attribute lives."""
    parent, _, leaf = wanted.rpartition(".")
    owner: nn.Module = graph
    for name in parent.split(".") if parent else ():
        if not hasattr(owner, name):  # a module of the user's that only calls functions is not in the graph
            return wanted
        owner = getattr(owner, name)
    if not hasattr(owner, leaf):
        return wanted
    number = 1
    while hasattr(owner, f"{leaf}_{number}"):
        number += 1
    return f"{wanted}_{number}"


def insert_after(
    graph: GraphModule, node: Node, path: str, module: nn.Module, *, users: list[Node] | None = None
) -> Node:
    """Call `module` on `node`'s value and give the result to `users`, by default to all of them."""
    path = free_path(graph, path)
    graph.add_submodule(path, module)
    readers = list(node.users) if users is None else users
    with graph.graph.inserting_after(node):
        added = graph.graph.call_module(path, (node,))
    added.meta = dict(node.meta)
    for user in readers:
        user.replace_input_with(node, added)
    return added


def restore_order(graph: GraphModule) -> None:
    """Put every node behind its inputs again, moving as few as possible, after edits that let one read a later one."""
    position = {node: i for i, node in enumerate(graph.graph.nodes)}
    waiting = {node: len(node.all_input_nodes) for node in position}
    ready = [(position[node], node) for node, count in waiting.items() if count == 0]
    heapify(ready)
    last: Node | None = None
    while ready:
        _, node = heappop(ready)
        if last is not None:
            last.append(node)
        last = node
        for user in node.users:
            waiting[user] -= 1
            if waiting[user] == 0:
                heappush(ready, (position[user], user))


def copy_sharing(module: M, tensors: Iterable[Tensor]) -> M:
    """A copy with these tensors themselves where `module` has them, as most of a model is weights."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def set_module(graph: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` at `path` in place of what is there."""
    parent, _, leaf = path.rpartition(".")
    setattr(graph.get_submodule(parent) if parent else graph, leaf, module)


def members_of(graph: GraphModule) -> list[GraphModule]:
    """The members of an ensemble, each a graph of its own over the same modules; empty for any other graph."""
    vote = next((node for node in graph.graph.nodes if is_call_of(graph, node, Vote)), None)
    if vote is None:
        return []
    return [_member(graph, number, logits) for number, logits in enumerate(vote.all_input_nodes, start=1)]


def _member(graph: GraphModule, number: int, logits: Node) -> GraphModule:
    wanted, todo = {logits}, [logits]
    while todo:
        new = [node for node in todo.pop().all_input_nodes if node not in wanted]
        wanted.update(new)
        todo += new
    part, made, prefix = Graph(), dict[Node, Node](), f"{MEMBER}{number}."
    for node in (n for n in graph.graph.nodes if n in wanted or n.op == "placeholder"):
        made[node] = part.node_copy(node, made.__getitem__)
        if node.op in ("call_module", "get_attr"):
            made[node].target = str(node.target).removeprefix(prefix)
    part.output(made[logits])
    member = GraphModule(graph.get_submodule(prefix[:-1]), part)
    return member.train(graph.training)


@contextmanager
def evaluation(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every submodule's own mode afterwards."""
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode
