"""Multiply the channels of every layer, as WRPN does, without changing the function.

    W'[o, i] = W[src o, src i] / m_i + d[o, i],   sum of d over the copies of an input = 0,   src: what a channel copies

Channel i has m_i copies side by side. What reads them shares the weight out among them, so the output stays as it was
(Net2Wider); d keeps copies from learning the same for ever. It is drawn with `noise` times the size of a filter's
weights: the signs of copies that differ come nearer to the weight, nearest (for normal weights) at about 3/4.

The network's input and output keep their size. So does whatever cannot be followed, and what depends on it.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.fx import GraphModule

from bnnconvert.graph import calls_of, input_of, shape_of
from bnnconvert.rewrite.base import EXACT, Promise, Refusal, Rewrite, Site
from bnnconvert.rewrite.channel_spaces import ChannelSpaces, Copies, Segment, Space, copies_of, follow
from bnnconvert.values.plan import LayerPlan, Plan

_DONE = "widened"


class Widen(Rewrite):
    """Copy channels, and share out the weights that read them."""

    name: ClassVar[str] = "widen"
    promise: ClassVar[Promise] = EXACT
    source: ClassVar[str] = (
        "Mishra et al., WRPN, ICLR 2018, arXiv:1709.01134; Chen et al., Net2Net, ICLR 2016, arXiv:1511.05641"
    )

    def __init__(self, *, factor: Annotated[float, Field(gt=1)], noise: Annotated[float, Field(ge=0)] = 0.75) -> None:
        self.factor, self.noise = factor, noise

    def find(self, graph: GraphModule, plan: Plan) -> Iterator[Site | Refusal]:
        if graph.meta.get(_DONE):
            return
        spaces = self._spaces(graph)
        yield from spaces.refusals
        if any(weighted.outputs.grows for weighted in spaces.weighted.values()):
            yield Site(next(iter(graph.graph.nodes)))

    @torch.no_grad()
    def apply(self, graph: GraphModule, site: Site) -> None:
        spaces, generator = self._spaces(graph), torch.Generator().manual_seed(0)
        for path, weighted in spaces.weighted.items():
            inputs, outputs = self._copies(weighted.inputs), self._copies((Segment(weighted.outputs),))
            _share_out(graph.get_submodule(path), inputs, outputs, self.noise, generator)
        for path, space in spaces.per_channel.items():
            _copy_channels(graph.get_submodule(path), self._copies(space))
        graph.meta[_DONE] = True

    def replan(self, graph: GraphModule, plan: Plan) -> Plan:
        return replace(plan, layers=tuple(_resized(graph, layer) for layer in plan.layers))

    def _spaces(self, graph: GraphModule) -> ChannelSpaces:
        """Channel spaces, with the groups of a grouped convolution kept at one size."""
        spaces, uneven = follow(graph), True
        while uneven:  # what is fixed for one convolution may be another's input
            uneven = False
            for path, weighted in spaces.weighted.items():
                groups = getattr(graph.get_submodule(path), "groups", 1)
                ends = (weighted.inputs, (Segment(weighted.outputs),))
                for end in (end for end in ends if not _is_even(self._copies(end), groups)):
                    for segment in end:
                        segment.group.fix()
                    spaces.refusals.append(Refusal(path, f"its {groups} groups would differ in size"))
                    uneven = True
        return spaces

    def _copies(self, space: Space) -> Copies:
        return copies_of(space, self._counts)

    def _counts(self, size: int) -> Tensor:
        """Copies of each of `size` channels, spread evenly where the factor is no integer."""
        ends = torch.arange(size + 1) * round(self.factor * size) // size
        return ends.diff()


def _is_even(copies: Copies, groups: int) -> bool:
    """Whether each of the groups, which split the channels before, has as many of them afterwards."""
    if groups == 1:
        return True
    per_group = int(copies.source.max() + 1) // groups
    return len(set(torch.bincount(copies.source // per_group).tolist())) == 1


def _share_out(module: nn.Module, inputs: Copies, outputs: Copies, noise: float, generator: torch.Generator) -> None:
    """Copy a layer's filters, and divide each weight among the copies of its input."""
    weight, bias = module.weight, module.bias
    assert isinstance(weight, nn.Parameter)
    groups, per_group = int(getattr(module, "groups", 1)), weight.shape[1]
    group = outputs.source // (len(weight) // groups)
    tail = (1,) * (weight.dim() - 2)
    columns = inputs.source.view(groups, -1)[group] - per_group * group[:, None]  # (O', I' / groups)
    count = inputs.count.view(groups, -1)[group].reshape(*columns.shape, *tail)
    shared = weight[outputs.source[:, None], columns] / count
    drawn = torch.randn(shared.shape, generator=generator)
    index = columns.reshape(*columns.shape, *tail).expand_as(drawn)
    sums = torch.zeros(len(shared), *weight.shape[1:]).scatter_add_(1, index, drawn)
    size = shared.flatten(1).square().mean(dim=1).sqrt().reshape(-1, 1, *tail)
    shared += noise * size * (drawn - sums.gather(1, index) / count)
    module.weight = nn.Parameter(shared, requires_grad=weight.requires_grad)
    if isinstance(bias, nn.Parameter):
        module.bias = nn.Parameter(bias[outputs.source], requires_grad=bias.requires_grad)
    kind = "features" if isinstance(module, nn.Linear) else "channels"
    setattr(module, f"in_{kind}", len(inputs.source))
    setattr(module, f"out_{kind}", len(outputs.source))


def _copy_channels(module: nn.Module, copies: Copies) -> None:
    """Copy what a module holds for each channel."""
    before, after = int(copies.source.max()) + 1, len(copies.source)
    for name, held in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        if held.dim() and len(held) == before:
            copied = held[copies.source]
            is_parameter = isinstance(held, nn.Parameter)
            setattr(module, name, nn.Parameter(copied, requires_grad=held.requires_grad) if is_parameter else copied)
    for name in ("num_features", "num_parameters", "in_channels", "out_channels", "groups"):
        if getattr(module, name, None) == before:
            setattr(module, name, after)


def _resized(graph: GraphModule, layer: LayerPlan) -> LayerPlan:
    """The plan of a layer with its shapes in the student."""
    node, module = calls_of(graph, layer.facts.path)[0], graph.get_submodule(layer.facts.path)
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return layer
    changed = replace(
        layer.facts,
        input_shape=shape_of(input_of(node)) or (),
        output_shape=shape_of(node) or (),
        weight_shape=tuple(weight.shape),
        parameters=sum(p.numel() for p in module.parameters()),
    )
    return layer if changed == layer.facts else replace(layer, student=changed)
