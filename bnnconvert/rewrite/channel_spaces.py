"""Which channels of a graph belong together: what must grow with what, and how a value's channel axis is made up.

A group is the channels that one layer gives; they grow together or not at all. A value's channel axis is a row of
segments, each a group with the number of neighbouring values per channel (more than one behind a flatten). Additions
join groups, concatenations put segments side by side, and whatever cannot be followed fixes its groups at their size.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

import torch
from torch import nn
from torch.fx import GraphModule, Node

from bnnconvert.graph import ACTIVATIONS, BATCH_NORMS, PASS_THROUGH, module_of, shape_of
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.layers.channel_scale import ChannelScale
from bnnconvert.layers.rprelu import RPReLU
from bnnconvert.rewrite.base import Refusal

PER_CHANNEL = (*BATCH_NORMS, nn.PReLU, RPReLU, ChannelScale)
"""Modules that hold values per channel."""
_ELEMENTWISE = (nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus)
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d)
_ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)
PASSING = (*ACTIVATIONS, *_ELEMENTWISE, *PASS_THROUGH, *_POOLS, *_ADAPTIVE)
"""Modules that treat every channel alike and hold nothing for it."""
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CALLED_AGAIN = "it is called again for channels that are put together differently"
_ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul, torch.div)


@dataclass(eq=False)
class Group:
    """Channels that grow together; joined groups answer as one."""

    size: int
    is_fixed: bool = False
    _joined: "Group | None" = None

    @property
    def root(self) -> "Group":
        """The group that answers for this one."""
        return self if self._joined is None else self._joined.root

    @property
    def grows(self) -> bool:
        """Whether nothing holds the group at its size."""
        return not self.root.is_fixed

    def fix(self) -> None:
        """Hold the group at its size."""
        self.root.is_fixed = True

    def join(self, other: "Group") -> None:
        """Let both groups grow together."""
        one, two = self.root, other.root
        if one is not two:
            one.is_fixed |= two.is_fixed
            two._joined = one


@dataclass(frozen=True)
class Segment:
    """A group on a channel axis, with `repeat` neighbouring values per channel."""

    group: Group
    repeat: int = 1

    @property
    def size(self) -> int:
        """Values of the segment."""
        return self.group.size * self.repeat


Space = tuple[Segment, ...]
"""The channel axis of a value."""


@dataclass(frozen=True)
class Weighted:
    """A convolution or linear layer: the channels that it reads, and those that it gives."""

    inputs: Space
    outputs: Group


@dataclass
class ChannelSpaces:
    """What following a graph found, layers by path."""

    weighted: dict[str, Weighted] = field(default_factory=dict)
    per_channel: dict[str, Space] = field(default_factory=dict)
    """Modules with values per channel, depthwise convolutions among them."""
    refusals: list[Refusal] = field(default_factory=list)


def follow(graph: GraphModule) -> ChannelSpaces:
    """Channel spaces of a graph whose nodes know their shapes; the network's inputs and outputs keep their size."""
    return _Following(graph).run()


def is_depthwise(module: nn.Module | None) -> bool:
    """Whether a module has one filter per channel."""
    return isinstance(module, _CONVS) and 1 < module.groups == module.in_channels == module.out_channels


class _Following:
    """One walk over a graph."""

    def __init__(self, graph: GraphModule) -> None:
        self.graph = graph
        self.found = ChannelSpaces()
        self.spaces: dict[Node, Space] = {}
        self.paths: dict[nn.Module, str] = {}
        """Each module by the first path under which it is called: a shared one has one place in the findings."""
        owners: dict[nn.Parameter, set[nn.Module]] = {}
        for module in graph.modules():
            for parameter in module.parameters(recurse=False):
                owners.setdefault(parameter, set()).add(module)
        self.tied = {module for modules in owners.values() if len(modules) > 1 for module in modules}

    def run(self) -> ChannelSpaces:
        for node in self.graph.graph.nodes:
            if node.op == "output":
                self._fix(self._read(node))
                continue
            reason, space = self._node(node) if node.op.startswith("call") else (None, None)
            if space is None:
                read = self._read(node)
                if reason is not None and any(s.group.grows for part in read for s in part):
                    self.found.refusals.append(Refusal(str(node.target), reason))
                self._fix(read)
                space = self._fixed(node)
            self.spaces[node] = space
        return self.found

    def _node(self, node: Node) -> tuple[str | None, Space | None]:
        """The node's space, or None and why it cannot be followed."""
        module = module_of(self.graph, node)
        if module is None:
            return self._function(node)
        if isinstance(module, BinaryLayer):
            return "it is binary already; put 'widen' in front of 'binarize'", None
        source = self.spaces[node.all_input_nodes[0]]
        if isinstance(module, PASSING) and not isinstance(module, PER_CHANNEL):
            return None, source
        if isinstance(module, nn.Flatten):
            return self._flatten(node, module, source)
        if not isinstance(module, (*PER_CHANNEL, *_CONVS, nn.Linear)):
            return f"a {type(module).__name__} may mix channels or hold values for them", None
        if module in self.tied:
            return "it shares a parameter with another module", None
        if isinstance(module, (*_CONVS, nn.Linear)) and "weight" not in dict(module.named_parameters(recurse=False)):
            return "its weight is computed, not a plain parameter", None
        path = self.paths.setdefault(module, str(node.target))
        if isinstance(module, PER_CHANNEL) or is_depthwise(module):
            before = self.found.per_channel.setdefault(path, source)
            return (None, before) if self._join(before, source) else (_CALLED_AGAIN, None)
        return self._weighted(node, module, path, source)

    def _weighted(self, node: Node, module: nn.Module, path: str, source: Space) -> tuple[str | None, Space | None]:
        if isinstance(module, nn.Linear) and len(shape_of(node) or ()) != 2:
            return "a linear layer on rows of rows has no channel axis to follow", None
        outputs = getattr(module, "out_channels", getattr(module, "out_features", 0))
        before = self.found.weighted.setdefault(path, Weighted(source, Group(outputs)))
        if not self._join(before.inputs, source):
            before.outputs.fix()
            return _CALLED_AGAIN, None
        return None, (Segment(before.outputs),)

    def _flatten(self, node: Node, module: nn.Flatten, source: Space) -> tuple[str | None, Space | None]:
        shape = shape_of(node.all_input_nodes[0]) or ()
        if module.start_dim != 1 or module.end_dim not in (-1, len(shape) - 1):
            return "it flattens other axes than all but the first", None
        values = prod(shape[2:])
        return None, tuple(Segment(s.group, s.repeat * values) for s in source)

    def _function(self, node: Node) -> tuple[str | None, Space | None]:
        name = getattr(node.target, "__name__", str(node.target))
        if node.target in (torch.cat, torch.concat):
            axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
            if axis not in (1, 1 - len(shape_of(node) or ())) or not isinstance(node.args[0], list | tuple):
                return f"{name} along another axis than the channels", None
            return None, tuple(s for part in node.args[0] if isinstance(part, Node) for s in self.spaces[part])
        if node.target not in _ARITHMETIC or len(node.args) != 2 or node.kwargs:
            return f"what {name} does to channels is not known", None
        values = [a for a in node.args if isinstance(a, Node)]
        shapes = [shape_of(value) or () for value in values]
        if any(len(shape) != len(shapes[0]) or len(shape) < 2 for shape in shapes):
            return f"{name} of values with different axes", None
        wide = [self.spaces[v] for v, shape in zip(values, shapes, strict=True) if shape[1] > 1]
        if len(wide) < len(values):  # one channel for all of the other operand
            self._fix([self.spaces[v] for v, shape in zip(values, shapes, strict=True) if shape[1] == 1])
        if not wide:
            return None, None
        if len(wide) == 2 and not self._join(*wide):
            return "its operands' channels are put together differently", None
        return None, wide[0]

    def _join(self, one: Space, two: Space) -> bool:
        """Let two spaces of one make grow together."""
        if [(s.group.size, s.repeat) for s in one] != [(s.group.size, s.repeat) for s in two]:
            self._fix([one, two])
            return False
        for a, b in zip(one, two, strict=True):
            a.group.join(b.group)
        return True

    def _read(self, node: Node) -> list[Space]:
        return [self.spaces[source] for source in node.all_input_nodes]

    def _fix(self, spaces: list[Space]) -> None:
        for space in spaces:
            for segment in space:
                segment.group.fix()

    def _fixed(self, node: Node) -> Space:
        shape = shape_of(node)
        return (Segment(Group(shape[1], is_fixed=True)),) if shape is not None and len(shape) > 1 else ()


Counts = Callable[[int], torch.Tensor]
"""Copies of each channel of a group of this size."""


@dataclass(frozen=True)
class Copies:
    """A channel axis as it is afterwards: for each value which one it copies, and how many copies that one has."""

    source: torch.Tensor
    count: torch.Tensor


def copies_of(space: Space, counts: Counts) -> Copies:
    """Copies on a channel axis whose growing groups have `counts` copies of their channels, copies side by side."""
    sources, numbers, first = [], [], 0
    for segment in space:
        size = segment.group.size
        count = counts(size) if segment.group.grows else torch.ones(size, dtype=torch.long)
        values = first + torch.arange(segment.size).view(size, segment.repeat)
        sources.append(values.repeat_interleave(count, dim=0).flatten())
        numbers.append(count.repeat_interleave(count).repeat_interleave(segment.repeat))
        first += segment.size
    return Copies(torch.cat(sources), torch.cat(numbers))
