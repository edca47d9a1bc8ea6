"""Layers that the user's code has not written as layers: a weight given to a function, or computed on the way.

F.conv2d(x, self.weight)                 becomes a layer with that parameter
a weight made of parameters alone        (weight norm, parametrizations, standardised weights) becomes a plain parameter
                                         with the value that it has in evaluation
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from bnnconvert.graph import calls_of, path_beside, set_module, stored

_CONVOLUTIONS: dict[Any, type[nn.Module]] = {F.conv1d: nn.Conv1d, F.conv2d: nn.Conv2d, F.conv3d: nn.Conv3d}
_TRANSPOSED: dict[Any, type[nn.Module]] = {
    F.conv_transpose1d: nn.ConvTranspose1d,
    F.conv_transpose2d: nn.ConvTranspose2d,
    F.conv_transpose3d: nn.ConvTranspose3d,
}
_REST = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_TRANSPOSED_REST = {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}
"""Arguments behind the bias, in their order, with what they are where they are not given."""
_PLAIN: tuple[type[nn.Module], ...] = (*_CONVOLUTIONS.values(), *_TRANSPOSED.values(), nn.Linear)


def give_weights_layers(graph: GraphModule) -> tuple[str, ...]:
    """Make layers of such calls, and plain layers of such modules; paths of those whose weight was computed."""
    computed = [path for node in list(graph.graph.nodes) if (path := _layer_of_call(graph, node))]
    _number_padding(graph)
    return (*computed, *_plain_layers(graph))


def _number_padding(graph: GraphModule) -> None:
    """Padding by name as numbers, where both sides get the same."""
    for path, module in list(graph.named_modules()):
        if type(module) not in _CONVOLUTIONS.values() or not isinstance(module.padding, str):
            continue
        reach = [step * (taps - 1) for taps, step in zip(module.kernel_size, module.dilation, strict=True)]
        if module.padding == "valid" or not any(r % 2 for r in reach):
            made: Any = _alike(module, type(module))
            made.padding = tuple(0 if module.padding == "valid" else r // 2 for r in reach)
            made.weight, made.bias = module.weight, module.bias
            set_module(graph, path, made.train(module.training))


def is_weighted_call(node: Node) -> bool:
    """Whether a node is a convolution or product with a weight that is handed over."""
    return node.op == "call_function" and node.target in (*_CONVOLUTIONS, *_TRANSPOSED, F.linear)


def _layer_of_call(graph: GraphModule, node: Node) -> str | None:
    """Path of the layer made of a call, if its weight was computed."""
    if not is_weighted_call(node):
        return None
    given = _bound(node)
    weight, bias = (_value(graph, given[name]) for name in ("weight", "bias"))
    if not isinstance(weight, Tensor) or not (bias is None or isinstance(bias, Tensor)):
        return None
    is_stored = given["weight"].op == "get_attr"
    path = _path(graph, node, given)
    if node.target is F.linear:
        made: Any = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    else:
        first, second, *kernel = weight.shape
        groups, is_transposed = given["groups"], node.target in _TRANSPOSED
        ends = (first, second * groups) if is_transposed else (second * groups, first)
        rest = {name: given[name] for name in _rest(node)}
        kind = (_CONVOLUTIONS | _TRANSPOSED)[node.target]
        made = kind(*ends, tuple(kernel), **rest, bias=False, device="meta")
    made.weight, made.bias = _parameter(weight), None if bias is None else _parameter(bias)
    graph.add_submodule(path, made.train(graph.training))
    with graph.graph.inserting_before(node):
        layer = graph.graph.call_module(path, (node.args[0] if node.args else node.kwargs["input"],))
    layer.meta.update(node.meta)
    node.replace_all_uses_with(layer)
    graph.graph.erase_node(node)
    return None if is_stored else path


def _rest(node: Node) -> dict[str, int]:
    return _TRANSPOSED_REST if node.target in _TRANSPOSED else _REST


def _bound(node: Node) -> dict[str, Any]:
    plain = {"bias": None, **_rest(node)}
    given = plain | dict(zip(("input", "weight", *plain), node.args, strict=False)) | dict(node.kwargs)
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def _path(graph: GraphModule, node: Node, given: dict[str, Any]) -> str:
    """The module whose parameters these are, if they are all it is for; else a new place below the calling module."""
    weight = given["weight"]
    owner = str(weight.target).rpartition(".")[0] if weight.op == "get_attr" else ""
    if owner and str(weight.target) == f"{owner}.weight" and not calls_of(graph, owner):
        holder = graph.get_submodule(owner)
        held = {*holder._parameters, *holder._buffers, *holder._modules}
        bias = given["bias"]
        if held <= {"weight", "bias"} and (bias is None or getattr(bias, "target", None) == f"{owner}.bias"):
            return owner
    return path_beside(graph, node, "linear" if node.target is F.linear else "conv")


def _value(graph: GraphModule, node: Any) -> Any:
    """What a node gives where it is made of parameters and buffers alone; the node itself where it is not."""
    if not isinstance(node, Node):
        return node
    needed, waiting = set[Node](), [node]
    while waiting:
        step = waiting.pop()
        if step.op == "placeholder":
            return node
        if step not in needed:
            needed.add(step)
            waiting += step.all_input_nodes
    if node.op == "get_attr":
        return stored(graph, str(node.target))
    interpreter = torch.fx.Interpreter(graph)
    with torch.no_grad():
        for step in graph.graph.nodes:
            if step in needed:
                interpreter.env[step] = interpreter.run_node(step)
    return interpreter.env[node].detach().clone()


def _parameter(tensor: Tensor) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach())


def _plain_layers(graph: GraphModule) -> list[str]:
    """Layers that compute their weight from other parameters of theirs, as plain ones."""
    found = []
    for path, module in list(graph.named_modules()):
        kind = next((kind for kind in _PLAIN if type(module) is kind or _is_parametrized(module, kind)), None)
        own = dict(module.named_parameters(recurse=False))
        if kind is None or not path or ("weight" in own and ("bias" in own or module.bias is None)):
            continue
        with torch.no_grad():
            for hook in module._forward_pre_hooks.values():  # the older weight norm computes its weight here
                hook(module, ())
        plain: Any = _alike(module, kind)
        weight, bias = module.weight, module.bias
        assert isinstance(weight, Tensor)
        plain.weight = nn.Parameter(weight.detach().clone())
        plain.bias = nn.Parameter(bias.detach().clone()) if isinstance(bias, Tensor) else None
        set_module(graph, path, plain.train(module.training))
        found.append(path)
    return found


def _alike(module: Any, kind: type[nn.Module]) -> nn.Module:
    """A layer of the same settings without parameters."""
    if kind is nn.Linear:
        return nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
    names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    settings = {name: getattr(module, name) for name in names}
    if kind in _TRANSPOSED.values():
        settings["output_padding"] = module.output_padding
    return kind(module.in_channels, module.out_channels, **settings, bias=False, device="meta")


def _is_parametrized(module: nn.Module, kind: type[nn.Module]) -> bool:
    return nn.utils.parametrize.is_parametrized(module) and kind in type(module).__mro__
