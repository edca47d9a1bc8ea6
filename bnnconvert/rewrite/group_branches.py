"""Several binary branches in place of each residual block, as GroupNet has them.

    block(x)  ->  merge(block_1(x_1), ..., block_K(x_K))        x_i = x, or with gates w x_i' + (1 - w) x

The merge is the mean, or a sum with learned scales. With `gates`, branch i of a block reads a learned mixture of what
the block before it gave on branch i, x_i', and on all. In the last `dilated_blocks` blocks the convolutions of branch
i are dilated i times (BPAC), for the same cost and a wider view.

Equal branches would stay equal. So their latent weights part by W_i = W + d_i, sum of d_i = 0, drawn with `noise` times
the size of a filter's weights. Put this behind 'binarize', and in front of the rewrites that treat shortcuts and
activations: those then see each branch.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch.fx import GraphModule, Node

from bnnconvert.graph import free_path, is_call_of, is_called_once, module_of
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.layers.branches import BranchMerge, SoftGate
from bnnconvert.layers.conv2d import BinaryConv2d
from bnnconvert.rewrite.base import RETRAIN, Promise, Refusal, Rewrite, Site
from bnnconvert.rewrite.blocks import Block, residual_blocks
from bnnconvert.values.plan import LayerPlan, Plan

_BRANCH_OF = "branch_of"


@dataclass(frozen=True)
class _BlockSite(Site):
    """A block to branch; `node` is its exit, `others` are all its nodes."""

    is_dilated: bool = False


class GroupBranches(Rewrite):
    """K homogeneous branches of each residual block with binary layers."""

    name: ClassVar[str] = "group-branches"
    promise: ClassVar[Promise] = RETRAIN
    source: ClassVar[str] = "Zhuang et al., Structured Binary Neural Networks, CVPR 2019, arXiv:1811.10413"

    def __init__(
        self,
        *,
        branches: Annotated[int, Field(ge=2)] = 5,
        merge: Literal["mean", "learned"] = "mean",
        gates: bool = False,
        dilated_blocks: Annotated[int, Field(ge=0)] = 0,
        noise: Annotated[float, Field(gt=0)] = 0.25,
    ) -> None:
        self.branches, self.merge, self.gates = branches, merge, gates
        self.dilated_blocks, self.noise = dilated_blocks, noise

    def find(self, graph: GraphModule, plan: Plan) -> Iterator[Site | Refusal]:
        blocks = [b for b in residual_blocks(graph) if any(is_call_of(graph, n, BinaryLayer) for n in b.nodes)]
        done = [block for block in blocks if any(is_call_of(graph, user, BranchMerge) for user in block.exit.users)]
        for number, block in enumerate(blocks):
            if block in done:
                continue
            shared = [n for n in block.nodes if n.op == "call_module" and not is_called_once(graph, n)]
            if shared:
                yield Refusal(str(shared[0].target), "its block cannot be branched, as it is called more than once")
            elif any(not _only_reads(block, n) for n in block.nodes):
                yield Refusal(str(block.exit.target), "its block reads values from outside")
            else:
                yield _BlockSite(block.exit, block.nodes, is_dilated=number >= len(blocks) - self.dilated_blocks)

    def apply(self, graph: GraphModule, site: Site) -> None:
        assert isinstance(site, _BlockSite)
        nodes, leaving = site.others, site.node
        # A block before this one may have been branched since: what enters is looked up now.
        entry = next(i for n in nodes for i in n.all_input_nodes if i not in nodes)
        scope = _scope(nodes)
        entries = self._gated(graph, entry, scope) if self.gates and is_call_of(graph, entry, BranchMerge) else None
        outside = list(leaving.users)
        branches = [nodes]
        for number in range(2, self.branches + 1):
            branches.append(_copy_branch(graph, nodes, number, after=branches[-1][-1]))
        if entries is not None:
            for branch, own in zip(branches, entries, strict=True):
                for node in branch:
                    node.replace_input_with(entry, own)
        self._part(graph, branches)
        if site.is_dilated:
            for times, branch in enumerate(branches, start=1):
                _dilate(graph, branch, times)
        path = free_path(graph, f"{scope}_merge")
        graph.add_submodule(path, BranchMerge(self.branches, learned=self.merge == "learned").train(graph.training))
        with graph.graph.inserting_after(branches[-1][-1]):
            merged = graph.graph.call_module(path, tuple(branch[-1] for branch in branches))
        merged.meta = {"shape": leaving.meta["shape"]}
        for user in outside:
            user.replace_input_with(leaving, merged)

    def replan(self, graph: GraphModule, plan: Plan) -> Plan:
        copies: dict[str, list[LayerPlan]] = {}
        for node in graph.graph.nodes:
            source = plan.layer(str(node.meta.get(_BRANCH_OF)))
            if source is not None and plan.layer(str(node.target)) is None:
                facts = replace(source.facts, path=str(node.target))
                reason = f"a branch of {source.facts.path}"
                copy_ = replace(source, facts=facts, reason=reason, is_copy=True)
                copies.setdefault(source.facts.path, []).append(copy_)
        layers = tuple(p for layer in plan.layers for p in (layer, *copies.get(layer.facts.path, [])))
        return replace(plan, layers=layers)

    def _gated(self, graph: GraphModule, entry: Node, scope: str) -> list[Node]:
        """What each branch reads: a mixture of its own branch of the block before and of all."""
        path = free_path(graph, f"{scope}_gate")
        graph.add_submodule(path, SoftGate().train(graph.training))
        gated: list[Node] = []
        for own in entry.all_input_nodes:
            with graph.graph.inserting_after(gated[-1] if gated else entry):
                gated.append(graph.graph.call_module(path, (own, entry)))
            gated[-1].meta = {"shape": entry.meta["shape"]}
        return gated

    @torch.no_grad()
    def _part(self, graph: GraphModule, branches: list[tuple[Node, ...]]) -> None:
        """Move the latent weights of the branches apart, around what they were."""
        generator = torch.Generator().manual_seed(0)
        for calls in zip(*branches, strict=True):
            layers = [m for call in calls if isinstance(m := module_of(graph, call), BinaryLayer)]
            if not layers:
                continue
            weight = layers[0].weight.detach().clone()
            drawn = torch.randn(len(layers), *weight.shape, generator=generator)
            size = weight.flatten(1).square().mean(dim=1).sqrt().reshape(-1, *(1,) * (weight.dim() - 1))
            for layer, moved in zip(layers, self.noise * size * (drawn - drawn.mean(dim=0)), strict=True):
                layer.weight.copy_(weight + moved)
                layer.weight_binarizer.calibrate(layer.weight)


def _only_reads(block: Block, node: Node) -> bool:
    return all(i in block.nodes or i is block.entry for i in node.all_input_nodes)


def _scope(nodes: tuple[Node, ...]) -> str:
    """Path by which the parts of a block are named: its first module's."""
    return str(next(node for node in nodes if node.op == "call_module").target)


def _copy_branch(graph: GraphModule, nodes: tuple[Node, ...], number: int, *, after: Node) -> tuple[Node, ...]:
    """A copy of a block, with modules of its own, that reads what the block reads."""
    made: dict[Node, Node] = {}
    last = after
    for node in nodes:
        with graph.graph.inserting_after(last):
            last = made[node] = graph.graph.node_copy(node, lambda n: made.get(n, n))
        if node.op == "call_module":
            path = free_path(graph, f"{node.target}_branch{number}")
            graph.add_submodule(path, copy.deepcopy(graph.get_submodule(str(node.target))))
            last.target = path
        last.meta = dict(node.meta) | {_BRANCH_OF: str(node.target)}
    return tuple(made[node] for node in nodes)


def _dilate(graph: GraphModule, branch: tuple[Node, ...], times: int) -> None:
    """Dilate a branch's binary convolutions that are padded by as much as they reach over the border."""
    for layer in (module_of(graph, node) for node in branch):
        if not isinstance(layer, BinaryConv2d):
            continue
        reach = [d * (k - 1) for k, d in zip(layer.weight.shape[2:], layer.dilation, strict=True)]
        if [2 * p for p in layer.padding] != reach:
            continue
        layer.dilation = (layer.dilation[0] * times, layer.dilation[1] * times)
        layer.padding = (layer.padding[0] * times, layer.padding[1] * times)
        if layer.gain is not None:
            layer.gain.site = replace(layer.gain.site, dilation=layer.dilation, padding=layer.padding)
