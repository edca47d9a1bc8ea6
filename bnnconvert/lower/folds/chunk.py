"""Several batches that went through a layer as one come apart by their number, not by a size.

    chunk(x, n, dim=0)  ->  unbind(unflatten(x, 0, (n, -1)))       where n divides the samples

Two frames, one encoder is the usual case. Chunks of a size that grows with the batch are as many as a division of sizes
says, which nothing proves for every batch.
"""

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from bnnconvert.graph import shape_of


class ChunkFold:
    """Chunks along the axis of the samples."""

    def find(self, deployed: GraphModule) -> Iterator[Node]:
        """Calls of `chunk` whose number divides the first axis, and of which single chunks are read."""
        for node in list(deployed.graph.nodes):
            if node.target not in (torch.chunk, "chunk"):
                continue
            _, chunks, dim = _arguments(node)
            shape = shape_of(node.all_input_nodes[0])
            read = all(user.target is operator.getitem for user in node.users)
            if dim == 0 and read and shape and isinstance(chunks, int) and shape[0] % chunks == 0:
                yield node

    def apply(self, deployed: GraphModule, site: Node) -> None:
        """Put the two calls in the place of the one."""
        x, chunks, _ = _arguments(site)
        with deployed.graph.inserting_before(site):
            parted = deployed.graph.call_method("unflatten", (x, 0, (chunks, -1)))
            parts = deployed.graph.call_method("unbind", (parted, 0))
        parts.meta = dict(site.meta)
        site.replace_all_uses_with(parts)
        deployed.graph.erase_node(site)


def _arguments(node: Node) -> tuple[Any, Any, Any]:
    given = dict(zip(("input", "chunks", "dim"), node.args, strict=False)) | node.kwargs
    return given["input"], given["chunks"], given.get("dim", 0)
