"""Facts from dataflow: which weight layers come first and last, and which stand on the side branch of an addition."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from torch import nn
from torch.fx import GraphModule, Node

from bnnconvert.graph import WEIGHT_LAYERS, all_calls, is_add, module_of, scope_of, shape_of, writes, written_by
from bnnconvert.layers.phases import Transposed
from bnnconvert.trace.attention import why_whole
from bnnconvert.trace.cells import why_whole_cell
from bnnconvert.trace.recurrent import why_whole_recurrent
from bnnconvert.trace.transposed import why_whole_transposed
from bnnconvert.trace.weights import is_weighted_call
from bnnconvert.values.plan import TABLE, LayerFacts

KINDS: dict[type[nn.Module], str] = {
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Conv3d: "conv3d",
    nn.ConvTranspose1d: "conv_transpose1d",
    nn.ConvTranspose2d: "conv_transpose2d",
    nn.ConvTranspose3d: "conv_transpose3d",
    nn.Linear: "linear",
    nn.Embedding: TABLE,
}


def layer_facts(graph: GraphModule) -> tuple[LayerFacts, ...]:
    """Facts about every weight layer, one per module, in execution order."""
    opaque: dict[str, str] = graph.meta.get("opaque", {})
    leaves: tuple[str, ...] = graph.meta.get("leaves", ())
    whole = {**opaque, **dict.fromkeys(leaves, "--leaf leaves it whole")}
    nodes = [n for n in graph.graph.nodes if _has_weights(graph, n)]
    above = _ancestors(graph, nodes)
    below = {a for n in nodes for a in above[n]}
    shortcuts = _shortcuts(graph, above)
    calls, seen = all_calls(graph), set[nn.Module]()
    facts: list[LayerFacts] = []
    for node in nodes:
        module = module_of(graph, node)
        if module is None:
            facts.append(_of_a_call(node, is_first=not above[node], is_last=node not in below))
            continue
        if module in seen:
            continue
        seen.add(module)
        is_first, is_last, path = not above[node], node not in below, str(node.target)
        if path in whole:
            facts += _inside(graph, path, whole[path], is_first=is_first, is_last=is_last)
        else:
            made = _facts(graph, calls[module], is_first=is_first, is_last=is_last, is_shortcut=node in shortcuts)
            facts.append(made)
    return tuple(facts)


def _has_weights(graph: GraphModule, node: Node) -> bool:
    """Whether a node calls a weight layer, or a module that is called as it is and has some inside."""
    module = module_of(graph, node)
    if module is None:
        return is_weighted_call(node)
    return any(isinstance(m, WEIGHT_LAYERS) for m in module.modules())


def _inside(graph: GraphModule, path: str, reason: str, *, is_first: bool, is_last: bool) -> Iterator[LayerFacts]:
    """Weight layers of a module that is called as it is: in the graphs inside it, then those in none."""
    inner = {p: ends for p, ends in graph.meta.get("inner", {}).items() if p.startswith(f"{path}.")}
    seen: set[nn.Module] = set()
    for name, ends in inner.items():
        part = graph.get_submodule(name)
        assert isinstance(part, GraphModule)
        seen.update(part.modules())
        for facts in layer_facts(part):
            yield replace(
                facts,
                path=f"{name}.{facts.path}",
                is_first=is_first and ends.is_first and facts.is_first,
                is_last=is_last and ends.is_last and facts.is_last,
            )
    for name, module in graph.get_submodule(path).named_modules():
        if isinstance(module, WEIGHT_LAYERS) and module not in seen:
            weight = getattr(module, "weight", None)
            yield LayerFacts(
                path=f"{path}.{name}" if name else path,
                kind=KINDS.get(type(module), type(module).__name__.lower()),
                input_shape=(),
                output_shape=(),
                weight_shape=tuple(weight.shape) if weight is not None else (),
                parameters=sum(p.numel() for p in module.parameters()),
                obstacle=f"it is inside {path!r}, which is called as it is: {reason}",
            )


def _of_a_call(node: Node, *, is_first: bool, is_last: bool) -> LayerFacts:
    """Facts about a convolution or product with a weight that is made anew for each input."""
    scope = scope_of(node)
    x, weight = node.all_input_nodes[:2]
    return LayerFacts(
        path=f"{scope}.{node.name}" if scope else node.name,
        kind=str(getattr(node.target, "__name__", node.target)),
        input_shape=shape_of(x) or (),
        output_shape=shape_of(node) or (),
        weight_shape=shape_of(weight) or (),
        parameters=0,
        is_first=is_first,
        is_last=is_last,
        obstacle="its weight depends on the input",
    )


def _facts(graph: GraphModule, calls: list[Node], *, is_first: bool, is_last: bool, is_shortcut: bool) -> LayerFacts:
    """Facts about a weight layer from where it is called first."""
    node, module = calls[0], module_of(graph, calls[0])
    assert module is not None
    weight = getattr(module, "weight", None)
    groups = getattr(module, "groups", 1)
    return LayerFacts(
        path=str(node.target),
        kind=KINDS.get(type(module), type(module).__name__.lower()),
        input_shape=shape_of(node.all_input_nodes[0]) or (),
        output_shape=shape_of(node) or (),
        weight_shape=tuple(weight.shape) if weight is not None else (),
        parameters=sum(p.numel() for p in module.parameters()),
        is_first=is_first,
        is_last=is_last,
        is_depthwise=groups > 1 and groups == getattr(module, "in_channels", 0),
        is_shortcut=is_shortcut,
        obstacle=_obstacle(graph, calls, module),
    )


def _obstacle(graph: GraphModule, calls: list[Node], module: nn.Module) -> str | None:
    """Why the layer cannot be binary, whatever the recipe says."""
    node = calls[0]
    if isinstance(module, nn.MultiheadAttention):
        return f"its projections cannot be taken apart, as {why_whole(graph, node, module)}"
    if isinstance(module, nn.RNNBase):
        return f"its steps cannot be written out, as {why_whole_recurrent(graph, node, module)}"
    if isinstance(module, nn.RNNCellBase):
        return why_whole_cell(graph, str(node.target), module)
    if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.sparse):
        return f"its table {'has sparse gradients' if module.sparse else 'is scaled while it is read (max_norm)'}"
    if type(module) not in KINDS:
        return f"there is no binary {type(module).__name__}"
    if len(calls) > 1 and type(module) not in (nn.Conv2d, nn.Linear, nn.Embedding):
        return f"the module is called {len(calls)} times, as only 2d convolutions and linear layers may be"
    if not isinstance(module, nn.Embedding) and len({shape_of(call.all_input_nodes[0]) for call in calls}) > 1:
        return f"the module is called {len(calls)} times on inputs of different sizes"
    if "weight" not in dict(module.named_parameters(recurse=False)):
        return "its weight is computed, not a plain parameter"
    if isinstance(module, Transposed):
        return why_whole_transposed(graph, node, module)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and (
        isinstance(module.padding, str) or module.padding_mode != "zeros"
    ):
        how = module.padding if isinstance(module.padding, str) else module.padding_mode
        return f"its padding is {how!r}, not a number of zeros"
    shape = shape_of(node.all_input_nodes[0])
    if isinstance(module, nn.Linear) and (shape is None or len(shape) < 2):
        return f"its input has shape {shape}, not (batch, ..., features)"
    return None


def _ancestors(graph: GraphModule, weight_nodes: Iterable[Node]) -> dict[Node, frozenset[Node]]:
    """Weight-layer nodes before each node."""
    weights = set(weight_nodes)
    above: dict[Node, frozenset[Node]] = {}
    for node in graph.graph.nodes:
        parents = [above[p] | ({p} if p in weights else set()) for p in node.all_input_nodes]
        above[node] = frozenset().union(*parents)
        for changed in written_by(node) if writes(node) else ():
            above[changed] |= above[node]
    return above


def _shortcuts(graph: GraphModule, above: dict[Node, frozenset[Node]]) -> set[Node]:
    """1x1 convolutions that alone make up one side of an addition whose other side does more."""
    found: set[Node] = set()
    for add in filter(is_add, graph.graph.nodes):
        if len(add.all_input_nodes) != 2:
            continue
        left, right = (
            above[p] | ({p} if p in above and _has_weights(graph, p) else set()) for p in add.all_input_nodes
        )
        for own, other in ((left - right, right - left), (right - left, left - right)):
            if len(own) == 1 and other and _is_pointwise(graph, next(iter(own))) and not _all_pointwise(graph, other):
                found |= own
    return found


def _is_pointwise(graph: GraphModule, node: Node) -> bool:
    module = module_of(graph, node)
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and set(module.kernel_size) == {1}


def _all_pointwise(graph: GraphModule, nodes: frozenset[Node] | set[Node]) -> bool:
    return len(nodes) == 1 and all(_is_pointwise(graph, n) for n in nodes)
