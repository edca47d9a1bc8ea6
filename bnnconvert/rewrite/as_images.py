"""Work on images what works on sequences and tokens, as there is one binary convolution, one packing and one kernel.

conv1d    (N, C, L) * w (O, C, k)              = conv2d on (N, C, L, 1) with w (O, C, k, 1)
linear    (N, T, C) or (N, H, W, C), w (O, C)  = conv2d on (N, C, T, 1) or (N, C, H, W) with w (O, C, 1, 1)
conv3d    (N, C, D, H, W) * w (O, C, k, h, w)  = conv2d on what each of D' windows sees (N D', C k, H, W)
transposed  stride s, kernel k = s K             = conv2d with kernel K for each of s s phases, then interleaved

Through what works element by element or along the same axes, a view moves up and a view back moves down, until the two
meet and both go.
"""

from collections.abc import Iterator
from dataclasses import replace as changed
from typing import Any, ClassVar, Literal

from torch import nn
from torch.fx import GraphModule, Node

from bnnconvert.graph import (
    calls_of,
    free_path,
    input_of,
    insert_after,
    is_add,
    is_call_of,
    module_of,
    only_user,
    set_module,
    shape_of,
)
from bnnconvert.layers.axes import Frames, FromFrames, FromImage, Interleave, Kind, ToImage, View
from bnnconvert.layers.phases import Transposed, convolution_of, phases_of
from bnnconvert.rewrite.base import EXACT, Promise, Refusal, Rewrite, Site
from bnnconvert.values.plan import Plan

TOKENS: dict[int, Kind] = {3: "tokens", 4: "grid"}
"""What a linear layer's input is, by its rank; with more axes it is a block."""
_ELEMENTWISE = {nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish}
_ELEMENTWISE |= {nn.Sigmoid, nn.Tanh, nn.Identity, nn.Dropout}
"""What may run before a view as well as behind it."""
_ALONG = (nn.BatchNorm1d, nn.MaxPool1d, nn.AvgPool1d)
"""What has a form of its own on images, for sequences."""
_RESHAPED = ("conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
"""Kinds of layers whose weights have another shape afterwards."""


class AsImages(Rewrite):
    """Binary layers over tokens and sequences as 2-D convolutions, and with a Conv1d its float neighbours."""

    name: ClassVar[str] = "as-images"
    promise: ClassVar[Promise] = EXACT

    def find(self, graph: GraphModule, plan: Plan) -> Iterator[Site | Refusal]:
        known = ((n, plan.layer(str(n.target))) for n in graph.graph.nodes if n.op == "call_module")
        layers = [Site(n, layer=p) for n, p in known if p is not None and kind_of(graph, n) is not None]
        binary = [site for site in layers if site.layer is not None and site.layer.decision != "float"]
        kinds = {kind_of(graph, site.node) for site in binary}
        for site in layers:
            fits = site.layer is not None and site.layer.facts.obstacle is None
            if site in binary or (fits and kind_of(graph, site.node) == "sequence" and "sequence" in kinds):
                yield site
        if not binary:
            yield from _views(graph)

    def replan(self, graph: GraphModule, plan: Plan) -> Plan:
        layers = []
        for layer in plan.layers:
            made = graph.get_submodule(layer.facts.path) if layer.facts.kind in _RESHAPED else None
            if isinstance(made, nn.Conv2d):
                facts = changed(layer.facts, weight_shape=tuple(made.weight.shape))
                layer = changed(layer, student=facts)
            layers.append(layer)
        return changed(plan, layers=tuple(layers))

    def apply(self, graph: GraphModule, site: Site) -> None:
        node = site.node
        if site.layer is not None:
            _wrap(graph, node)
        elif is_call_of(graph, node, FromImage):
            _move_down(graph, node, site.others)
        elif site.others:
            _move_up(graph, node, site.others[0])
        else:  # a view of what is an image already
            back = input_of(node)
            node.replace_all_uses_with(input_of(back))
            graph.graph.erase_node(node)
            if not back.users:
                graph.graph.erase_node(back)


def kind_of(graph: GraphModule, node: Node) -> Kind | Literal["volume", "phases"] | None:
    """What a layer's input is, if the layer is one that has a form on images; None for any other."""
    module, shape = module_of(graph, node), shape_of(node.all_input_nodes[0]) if node.all_input_nodes else None
    if isinstance(module, nn.Conv1d):
        return "sequence"
    if isinstance(module, nn.Conv3d):
        return "volume"
    if isinstance(module, Transposed):
        return "phases"
    if not isinstance(module, nn.Linear) or shape is None or len(shape) < 3:
        return None
    return TOKENS.get(len(shape), "block")


def _wrap(graph: GraphModule, node: Node) -> None:
    """A convolution in the layer's place, between a view as an image and one back."""
    kind, path, module = kind_of(graph, node), str(node.target), module_of(graph, node)
    assert kind is not None
    if isinstance(module, nn.Conv3d):
        _wrap_volume(graph, node, module)
        return
    if isinstance(module, Transposed):
        _wrap_transposed(graph, node, module)
        return
    assert kind != "volume"
    assert kind != "phases"
    before = shape_of(input_of(node)) or ()
    image = insert_after(graph, input_of(node), f"{path}_image", ToImage(kind), users=[node])
    assert isinstance(module, nn.Conv1d | nn.Linear)
    set_module(graph, path, _convolution(module))
    insert_after(graph, node, f"{path}_back", FromImage(kind, before[2:-1] if kind == "block" else ()))
    image.meta["shape"] = node.meta["shape"] = None  # until the runner has looked at them


def _wrap_volume(graph: GraphModule, node: Node, module: nn.Conv3d) -> None:
    path, shape = str(node.target), shape_of(node)
    assert shape is not None
    assert not isinstance(module.padding, str), "the planner keeps convolutions with named padding float"
    depth = {name: getattr(module, name)[0] for name in ("stride", "padding", "dilation")}
    taps = module.kernel_size[0]
    windows = insert_after(graph, input_of(node), f"{path}_frames", Frames(taps, **depth), users=[node])
    flat: Any = {name: getattr(module, name)[1:] for name in ("kernel_size", "stride", "padding", "dilation")}
    sizes = module.in_channels * taps, module.out_channels
    made = nn.Conv2d(*sizes, **flat, groups=module.groups, bias=module.bias is not None, device="meta")
    made.weight = nn.Parameter(module.weight.detach().flatten(1, 2))
    made.bias = module.bias
    set_module(graph, path, made.train(module.training))
    insert_after(graph, node, f"{path}_volume", FromFrames(shape[2]))
    windows.meta["shape"] = node.meta["shape"] = None


def _wrap_transposed(graph: GraphModule, node: Node, module: Transposed) -> None:
    """One convolution for all phases, whose kernel is a multiple of the stride.

    Over sequences and volumes that convolution has a form on images itself, which the next round finds.
    """
    path, before, shape = str(node.target), shape_of(input_of(node)), shape_of(node)
    assert before is not None
    assert shape is not None
    (phases,) = phases_of(module)
    made = convolution_of(module, phases)
    set_module(graph, path, made)
    start: Any = module.padding
    insert_after(graph, node, f"{path}_phases", Interleave(module.stride, start, shape[2:]))
    sizes = (size + phase.taps - 1 for size, phase in zip(before[2:], phases, strict=True))
    node.meta["shape"] = (before[0], made.out_channels, *sizes)


def _convolution(module: nn.Conv1d | nn.Linear) -> nn.Conv2d:
    has_bias = module.bias is not None
    if isinstance(module, nn.Linear):
        made = nn.Conv2d(module.in_features, module.out_features, 1, bias=has_bias, device="meta")
    else:
        assert not isinstance(module.padding, str), "the planner keeps convolutions with named padding float"
        settings: Any = {name: (getattr(module, name)[0], 1) for name in ("kernel_size", "stride", "dilation")}
        made = nn.Conv2d(
            module.in_channels,
            module.out_channels,
            **settings,
            padding=(module.padding[0], 0),
            groups=module.groups,
            bias=has_bias,
            device="meta",
        )
    made.weight = nn.Parameter(module.weight.detach().reshape(made.weight.shape))
    made.bias = module.bias
    return made.train(module.training)


def _views(graph: GraphModule) -> Iterator[Site]:
    """Views that meet their inverse, or that may move."""
    for node in graph.graph.nodes:
        if is_call_of(graph, node, ToImage) and _kind(graph, input_of(node), FromImage) == _kind(graph, node, ToImage):
            yield Site(node)
    yield from _moving(graph)


def _moving(graph: GraphModule) -> Iterator[Site]:
    """Views back that may move behind what reads them, and views that may move in front of what they read."""
    taken: set[Node] = set()
    for node in graph.graph.nodes:
        kind = _kind(graph, node, ToImage)
        source = None if kind is None else input_of(node)
        if kind and source and source not in taken and only_user(source) and _moves(graph, source, kind):
            taken.update((node, source))
            yield Site(node, (source,))
            continue
        kind, user = _kind(graph, node, FromImage), only_user(node)
        if kind is None or user is None or node in taken or user in taken:
            continue
        views = tuple(user.all_input_nodes) if is_add(user) else (node,)
        if is_add(user):
            moves = all(_kind(graph, v, FromImage) == kind and only_user(v) and v not in taken for v in views)
        else:
            moves = _moves(graph, user, kind)
        if moves:
            taken.update((*views, user))
            yield Site(node, (user, *views))


def _kind(graph: GraphModule, node: Node, view: type[View]) -> Kind | None:
    """Kind of the view that a node is; None where it is no such view."""
    module = module_of(graph, node)
    return module.kind if isinstance(module, view) else None


def _moves(graph: GraphModule, user: Node, kind: Kind) -> bool:
    """Whether a module gives the same on an image; one that is called elsewhere, too, must stay as it is."""
    module = module_of(graph, user)
    if type(module) in _ELEMENTWISE:
        return True
    if kind != "sequence" or not isinstance(module, _ALONG):
        return False
    return len(calls_of(graph, str(user.target))) == 1 and _on_images(module) is not None


def _on_images(module: nn.Module) -> nn.Module | None:
    """The module's form on images, or None where it has none."""
    if isinstance(module, nn.BatchNorm1d):
        norm = nn.BatchNorm2d(
            module.num_features,
            module.eps,
            module.momentum,
            module.affine,
            module.track_running_stats,
        )
        norm._parameters, norm._buffers = module._parameters, module._buffers
        return norm.train(module.training)
    assert isinstance(module, nn.MaxPool1d | nn.AvgPool1d)
    names = ("kernel_size", "stride", "padding")
    kernel, stride, padding = (_first(getattr(module, name)) for name in names)
    places: Any = {"kernel_size": (kernel, 1), "stride": (stride, 1), "padding": (padding, 0)}
    if isinstance(module, nn.AvgPool1d):
        return nn.AvgPool2d(**places, ceil_mode=module.ceil_mode, count_include_pad=module.count_include_pad)
    if module.return_indices:
        return None
    return nn.MaxPool2d(**places, dilation=(_first(module.dilation), 1), ceil_mode=module.ceil_mode)


def _take_images(graph: GraphModule, node: Node) -> None:
    """Give a module its form on images, if it needs one."""
    module = module_of(graph, node)
    if isinstance(module, _ALONG):
        made = _on_images(module)
        assert made is not None
        set_module(graph, str(node.target), made)


def _move_up(graph: GraphModule, node: Node, source: Node) -> None:
    """Let what a view reads work on images; the view comes in front of it."""
    view = module_of(graph, node)
    assert isinstance(view, ToImage)
    _take_images(graph, source)
    insert_after(graph, input_of(source), f"{source.target}_image", ToImage(view.kind), users=[source])
    node.replace_all_uses_with(source)
    graph.graph.erase_node(node)


def _first(value: Any) -> int:
    return int(value[0] if isinstance(value, tuple) else value)


def _move_down(graph: GraphModule, node: Node, others: tuple[Node, ...]) -> None:
    """Let what reads a view back, or several in a sum, read the image; the view comes behind it."""
    user, *views = others
    _take_images(graph, user)
    view = module_of(graph, node)
    assert isinstance(view, FromImage)
    for back in views:
        user.replace_input_with(back, input_of(back))
    path = free_path(graph, f"{user.target if user.op == 'call_module' else node.target}_back")
    insert_after(graph, user, path, FromImage(view.kind, view.sizes))
    for back in views:
        graph.graph.erase_node(back)
