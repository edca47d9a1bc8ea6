"""Put a batch norm in front of each sign whose input is not centred.

    sign(x)  ->  sign((x - mu_c) / s_c)

It starts as the identity and takes its statistics from data before the first training step. `after_layers` gives one
to each binary layer that has none, which a hardtanh needs as much as a sign; `before_last` and `after_last` add one
around the last layer, as IR-Net's and BNN's residual networks have it. `directly` asks for a batch norm with no
activation behind it: a PReLU whose slope turns negative gives one sign only, whatever centred it before.

With `affine = false` each sign gets an input of mean 0 and deviation 1, which a quantizer with fixed levels is made for
(HWGQ): a batch norm in front without scale and shift. One that only signs read loses its own, unless a scale in it is
not positive: the sign of a channel is not the quantizer's to turn.
"""

import operator
from collections.abc import Iterator
from typing import ClassVar

from torch import nn
from torch.fx import GraphModule, Node

from bnnconvert.graph import (
    BATCH_NORMS,
    PASS_THROUGH,
    binary_inputs,
    input_of,
    insert_after,
    is_add,
    is_call_of,
    is_called_once,
    module_of,
    only_user,
    set_module,
    shape_of,
    skip_back,
)
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.layers.branches import BranchMerge, SoftGate
from bnnconvert.layers.channel_scale import ChannelScale
from bnnconvert.layers.maxout import Maxout
from bnnconvert.layers.recurrent import RecurrentStep
from bnnconvert.layers.rprelu import RPReLU
from bnnconvert.rewrite.base import RETRAIN, Promise, Refusal, Rewrite, Site
from bnnconvert.rewrite.regions import feeds_only_signs
from bnnconvert.values.plan import Plan

_MAX_DEPTH = 6
_KEEP_BOTH_SIGNS = (
    *PASS_THROUGH,
    nn.Tanh,
    nn.PReLU,
    nn.LeakyReLU,
    RPReLU,
    Maxout,
    ChannelScale,
)


class InsertBatchNorm(Rewrite):
    """Batch norm before sign."""

    name: ClassVar[str] = "insert-batch-norm"
    promise: ClassVar[Promise] = RETRAIN

    def __init__(
        self,
        *,
        before_signs: bool = True,
        directly: bool = False,
        after_layers: bool = False,
        before_last: bool = False,
        after_last: bool = False,
        affine: bool = True,
    ) -> None:
        self.before_signs, self.directly, self.after_layers = before_signs, directly, after_layers
        self.before_last, self.after_last = before_last, after_last
        self.affine = affine

    def find(self, graph: GraphModule, plan: Plan) -> Iterator[Site | Refusal]:
        bare = [end for n in _binary(graph) if self.after_layers and (end := _bare_end(graph, n, plan))]
        if bare:  # what comes after them is centred by them, so the signs are looked at again afterwards
            for end in bare:
                yield from _site(end, end)
            return
        is_ready = _is_standard if not self.affine else _is_normed if self.directly else _is_centred
        wanted = {
            n: input_of(n) for n in binary_inputs(graph) if self.before_signs and not is_ready(graph, input_of(n))
        }
        for node in graph.graph.nodes:
            layer = plan.layer(str(node.target)) if node.op == "call_module" else None
            if layer is None or not layer.facts.is_last:
                continue
            if self.before_last and not is_call_of(graph, input_of(node), BATCH_NORMS):
                wanted[node] = input_of(node)
            if self.after_last and not any(is_call_of(graph, user, BATCH_NORMS) for user in node.users):
                yield from _site(node, node)
        scaled = {
            r: norm for r, s in wanted.items() if not self.affine and (norm := _scaled_norm(graph, s)) is not None
        }
        yield from (Site(norm) for norm in dict.fromkeys(scaled.values()))
        for reader, source in wanted.items():
            if reader not in scaled:
                yield from _site(reader, source)

    def apply(self, graph: GraphModule, site: Site) -> None:
        if not site.others:
            _drop_scale(graph, site.node)
            return
        reader, (source,) = site.node, site.others
        shape = shape_of(source)
        assert shape is not None
        norm = (nn.BatchNorm1d if len(shape) < 4 else nn.BatchNorm2d)(shape[1], affine=self.affine)
        after = reader is source
        path = f"{reader.target}_{'output_norm' if after else 'norm'}"
        insert_after(graph, source, path, norm.train(graph.training), users=None if after else [reader])


def _binary(graph: GraphModule) -> Iterator[Node]:
    """Nodes of all binary layers, those with a float input too."""
    return (node for node in graph.graph.nodes if isinstance(module_of(graph, node), BinaryLayer))


def _bare_end(graph: GraphModule, node: Node, plan: Plan) -> Node | None:
    """Last node of a binary layer and the max-pool behind it, if no batch norm follows; the last layer is not meant."""
    layer = plan.layer(str(node.target))
    if layer is None or layer.facts.is_last:
        return None
    end = node
    while (user := only_user(end)) is not None and is_call_of(graph, user, nn.MaxPool2d):
        end = user
    return None if any(is_call_of(graph, user, BATCH_NORMS) for user in end.users) else end


def _site(reader: Node, source: Node) -> Iterator[Site | Refusal]:
    shape = shape_of(source)
    if shape is not None and 2 <= len(shape) <= 4:
        yield Site(reader, (source,))
    else:
        yield Refusal(str(reader.target), f"no batch norm fits a tensor of shape {shape}")


def _is_normed(graph: GraphModule, node: Node) -> bool:
    """Whether the value comes from a batch norm with no activation behind it."""
    return is_call_of(graph, skip_back(graph, node, PASS_THROUGH), BATCH_NORMS)


def _is_standard(graph: GraphModule, node: Node) -> bool:
    """Whether the value comes from a batch norm without scale and shift."""
    norm = module_of(graph, skip_back(graph, node, PASS_THROUGH))
    return isinstance(norm, BATCH_NORMS) and not norm.affine


def _scaled_norm(graph: GraphModule, source: Node) -> Node | None:
    """The batch norm behind a sign's input, if it may lose its scale and shift: only signs read it, and none turns."""
    node = skip_back(graph, source, PASS_THROUGH)
    norm = module_of(graph, node)
    if not isinstance(norm, BATCH_NORMS) or not isinstance(norm.weight, nn.Parameter) or not (norm.weight > 0).all():
        return None
    return node if is_called_once(graph, node) and feeds_only_signs(graph, node) else None


def _drop_scale(graph: GraphModule, node: Node) -> None:
    norm = module_of(graph, node)
    assert isinstance(norm, BATCH_NORMS)
    plain = type(norm)(norm.num_features, eps=norm.eps, momentum=norm.momentum, affine=False)
    plain.load_state_dict(dict(norm.named_buffers()))
    set_module(graph, str(node.target), plain.train(norm.training))


def _keeps_both_signs(module: nn.Module | None) -> bool:
    if isinstance(module, nn.Hardtanh):  # of which ReLU6 is one
        return module.min_val < 0 < module.max_val
    return isinstance(module, _KEEP_BOTH_SIGNS)


def _is_centred(graph: GraphModule, node: Node, *, depth: int = 0) -> bool:
    """Whether the value has both signs in every channel: a batch norm's, or a sum of such.

    A residual stream is a sum of a sum and so on; a stream of many blocks is followed back a few blocks and no more.
    """
    source = node
    while _keeps_both_signs(module_of(graph, source)):
        source = input_of(source)
    is_sum = is_add(source) or is_call_of(graph, source, (BranchMerge, SoftGate))
    if is_sum and depth < _MAX_DEPTH:
        return all(_is_centred(graph, part, depth=depth + 1) for part in source.all_input_nodes)
    is_state = source.target is operator.getitem and is_call_of(graph, source.args[0], RecurrentStep)
    return is_sum or is_state or is_call_of(graph, source, BATCH_NORMS)
