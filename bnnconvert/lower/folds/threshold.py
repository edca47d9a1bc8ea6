"""Fold everything between an accumulator and the next encode into thresholds on the accumulator.

    bit(acc) = encode(f(acc))        f: affine, batch norm, ReLU, Hardtanh, PReLU, ..., a function per channel

The accumulator of a row of K bits is one of the integers -K .. K. The student's own modules are run on all of them,
for every channel, and the places where a bit flips become its thresholds: exact by construction, whatever the signs
of scales and slopes, and whatever the rounding. Where each module is monotone, as products with and sums of constants
are in floating point as well, a coarse look and a fine one at the single flip find the same with fewer values.

A max-pool may stand in the chain: for f non-decreasing, pool(f(acc)) = f(pool(acc)), so it moves onto the accumulator.
Source: Umuroglu et al., FINN, FPGA 2017, arXiv:1612.07119, for the idea; evaluation replaces its closed formula.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from bnnconvert.graph import ACTIVATIONS, BATCH_NORMS, RELUS, free_path, input_of, is_call_of, module_of, only_user
from bnnconvert.layers.operators import padding_threshold
from bnnconvert.layers.packed import Affine, BinaryDot2d, BinaryDotLinear, Dot, Encode
from bnnconvert.layers.rprelu import RPReLU
from bnnconvert.layers.shift_batch_norm import ChannelAffine

PER_CHANNEL = (*ACTIVATIONS, *BATCH_NORMS, ChannelAffine)
POOLS = (nn.MaxPool1d, nn.MaxPool2d)
MONOTONE = (Affine, *BATCH_NORMS, ChannelAffine, *RELUS, nn.Hardtanh, *POOLS)
"""Modules whose outputs never turn back as a channel's input grows, whatever their parameters."""
MAX_FLIPS = 16
"""A channel whose bit flips more often stays on the float path: it is noise, and costs more than it saves."""
CHUNK = 2**22
"""Elements evaluated at a time."""


@dataclass(frozen=True)
class Step:
    """A module of a chain, and the shape that it has in the network."""

    module: nn.Module
    shape: tuple[int, ...]

    def on_values(self, x: Tensor) -> Tensor:
        """Run the module on a list of values, laid out so that torch picks the kernel that it picks in the network.

        A batch norm rounds differently on one pixel than on several.

        Shapes: (n, C) -> (n, C').
        """
        if len(self.shape) == 2:
            y: Tensor = self.module(x.contiguous())
            return y
        if self.shape[2:] == (1, 1):
            return self.module(x[:, :, None, None].contiguous())[:, :, 0, 0]  # type: ignore[no-any-return]
        return self.module(x.T[None, :, :, None].contiguous())[0, :, :, 0].T  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Site:
    """A chain that starts at an accumulator and ends in an encode, and the thresholds that replace it."""

    dot: Node
    pools: tuple[Node, ...]
    encode: Node
    thresholds: Tensor
    start: Tensor


class ThresholdFold:
    """Thresholds on accumulators."""

    def find(self, deployed: GraphModule) -> list[Site]:
        """Foldable chains with their thresholds."""
        sites = []
        for node in deployed.graph.nodes:
            chain = _chain(deployed, node) if is_call_of(deployed, node, Encode) else None
            if chain is not None:
                steps = [Step(deployed.get_submodule(str(n.target)), n.meta["shape"]) for n in chain]
                dot, affine = module_of(deployed, input_of(chain[0])), steps[0].module
                assert isinstance(dot, Dot)
                assert isinstance(affine, Affine)
                found = thresholds_of(steps, k=dot.k, channels=affine.scale.shape[1])
                if found is not None:
                    pools = tuple(n for n in chain if is_call_of(deployed, n, POOLS))
                    sites.append(Site(input_of(chain[0]), pools, node, *found))
        return sites

    def apply(self, deployed: GraphModule, site: Site) -> None:
        """Replace the chain by its pools and one encode, both on the accumulator."""
        path = free_path(deployed, f"{str(site.encode.target).rpartition('.')[0]}.thresholds")
        deployed.add_submodule(path, Encode(site.thresholds, site.start))
        value = site.dot
        with deployed.graph.inserting_before(site.encode):
            for pool in site.pools:
                value = deployed.graph.call_module(str(pool.target), (value,))
            value = deployed.graph.call_module(path, (value,))
        site.encode.replace_all_uses_with(value)
        deployed.graph.erase_node(site.encode)


def _chain(deployed: GraphModule, encode: Node) -> list[Node] | None:
    """Nodes from the affine to the encode, or None where they cannot be folded.

    Everything in between must be a function per channel that nothing else reads, behind one accumulator plane.
    """
    chain = [encode]
    while not is_call_of(deployed, chain[0], Affine):
        node = input_of(chain[0])
        if only_user(node) is None or not is_call_of(deployed, node, (*PER_CHANNEL, *POOLS, Affine)):
            return None
        chain.insert(0, node)
    affine, dot = module_of(deployed, chain[0]), input_of(chain[0])
    assert isinstance(affine, Affine)
    if affine.scale.shape[0] != 1 or only_user(dot) is None:
        return None
    conv = is_call_of(deployed, dot, BinaryDot2d) and len(chain[0].meta["shape"]) == 4
    linear = is_call_of(deployed, dot, BinaryDotLinear) and len(chain[0].meta["shape"]) == 2
    pools = [m for m in (module_of(deployed, n) for n in chain) if isinstance(m, POOLS)]
    return chain if (conv or linear) and not any(pool.return_indices for pool in pools) else None


def thresholds_of(steps: Sequence[Step], *, k: int, channels: int) -> tuple[Tensor, Tensor] | None:
    """Thresholds and starts of an encode on accumulators that equals `steps` run one after another.

    None where a max-pool stands behind a function that decreases somewhere, a value is not finite, or a channel
    flips too often.

    Shapes: thresholds (P, C, T) int32, start (P, C) bool.
    """
    found = _single_flips(steps, k, channels) if _flips_once(steps) else _all_flips(steps, k, channels)
    return None if found is None else _collect(*found)


def _flips_once(steps: Sequence[Step]) -> bool:
    """Whether a bit flips at most once along the accumulators: one threshold behind monotone modules."""
    *before, encode = (step.module for step in steps)
    assert isinstance(encode, Encode)
    return encode.thresholds.shape[-1] == 1 and all(map(_is_monotone, before))


def _is_monotone(module: nn.Module) -> bool:
    if isinstance(module, nn.PReLU | RPReLU):
        return bool(((module.weight if isinstance(module, nn.PReLU) else module.slope) >= 0).all())
    return isinstance(module, MONOTONE) or (isinstance(module, nn.LeakyReLU) and module.negative_slope >= 0)


def _single_flips(steps: Sequence[Step], k: int, channels: int) -> tuple[Tensor, Tensor] | None:
    """Bits at -k, and the flips (plane, channel, value), of a chain that flips at most once in each."""
    stride = max(1, math.isqrt(2 * k))
    coarse = torch.cat([torch.arange(-k, k, stride), torch.tensor([k])])[:, None].expand(-1, channels)
    bits = _evaluate(steps, coarse)
    if bits is None:
        return None
    near, flips = _flips(bits, coarse, upper=False), []
    for plane in range(len(bits)):
        _, channel, low = near[:, near[0] == plane]
        begin = torch.full((channels,), -k).index_put((channel,), low)
        fine = (begin + torch.arange(stride + 1)[:, None]).clamp(max=k)
        seen = _evaluate(steps, fine)
        assert seen is not None, "a monotone chain is finite between finite values"
        found = _flips(seen[plane, None], fine)
        flips.append(torch.cat([torch.full_like(found[:1], plane), found[1:]]))
    return bits[..., 0], torch.cat(flips, 1)


def _all_flips(steps: Sequence[Step], k: int, channels: int) -> tuple[Tensor, Tensor] | None:
    """Bits at -k, and the flips (plane, channel, value), in order of their values."""
    length = max(2, CHUNK // channels)
    start, flips = None, []
    for low in range(-k, k, length):  # neighbouring pieces share one value, so that no flip falls between them
        values = torch.arange(low, min(low + length, k) + 1)[:, None].expand(-1, channels)
        bits = _evaluate(steps, values)
        if bits is None:
            return None
        start = bits[..., 0] if start is None else start
        flips.append(_flips(bits, values))
    assert start is not None, "a row has at least one bit"
    return start, torch.cat(flips, 1)


def _flips(bits: Tensor, values: Tensor, *, upper: bool = True) -> Tensor:
    """Where bits change: plane, channel and the value behind the change, or in front of it.

    Shapes: bits (P, C, n), values (n, C) -> (3, flips).
    """
    plane, channel, at = (bits[..., 1:] != bits[..., :-1]).nonzero(as_tuple=True)
    return torch.stack([plane, channel, values[at + upper, channel]])


def _evaluate(steps: Sequence[Step], values: Tensor) -> Tensor | None:
    """Bits of every plane and channel on accumulator `values`, each channel's own; None where one is not finite.

    Shapes: (n, C) -> (P, C, n).
    """
    x, channels = values.int(), values.shape[1]
    with torch.no_grad():
        for step in steps:
            if isinstance(step.module, POOLS):
                if (x.diff(dim=0) < 0).any():
                    return None
            else:
                x = step.on_values(x)
            if x.is_floating_point() and not all(side.isfinite() for side in torch.aminmax(x)):
                return None
    return x.T.reshape(-1, channels, len(values))


def _collect(start: Tensor, flips: Tensor) -> tuple[Tensor, Tensor] | None:
    """Threshold table from a list of flips (plane, channel, value), whose values ascend within a channel."""
    planes, channels = start.shape
    row = flips[0] * channels + flips[1]
    counts = torch.bincount(row, minlength=planes * channels)
    if counts.max() > MAX_FLIPS:
        return None
    order = torch.argsort(row, stable=True)
    row, value = row[order], flips[2][order]
    rank = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
    table = torch.full((planes * channels, max(1, int(counts.max()))), int(padding_threshold(torch.int32)))
    table[row, rank] = value
    return table.to(torch.int32).reshape(planes, channels, -1), start.clone()
