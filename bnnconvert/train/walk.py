"""A graph evaluated node by node, for several batches side by side.

Whatever is set in a layer from what enters it can be set in passing: each layer sees what the ones before it give now.
"""

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from bnnconvert.graph import input_of
from bnnconvert.values.inputs import Example, as_tuple

VALUES = 2**26
"""Input values that are looked at together: the network holds what is alive of them."""


class Walk(Interpreter):
    """Evaluates the nodes that it is led to, and keeps the values that are still to be read."""

    def __init__(self, graph: GraphModule, batches: Sequence[Example]) -> None:
        super().__init__(graph)
        self.values: list[dict[Node, Any]] = [{} for _ in batches]
        self._given = [iter(as_tuple(x)) for x in batches]

    def take(self, node: Node) -> None:
        """Evaluate the next node and let go what it was the last to read."""
        for values, given in zip(self.values, self._given, strict=True):
            self.env = values
            if node.op == "placeholder":
                values[node] = next(given, *node.args)
            elif node.op != "output":
                values[node] = self.run_node(node)
            for spent in self.user_to_last_uses.get(node, []):
                del values[spent]

    def rehearse(self, node: Node) -> None:
        """Evaluate the next node without taking it, on copies of its inputs, as it may write to them."""
        for values in self.values:
            self.env = {entering: deepcopy(values[entering]) for entering in node.all_input_nodes}
            self.run_node(node)

    def inputs(self, node: Node) -> Iterator[Tensor]:
        """What enters a node that is not taken yet, batch by batch."""
        return (values[input_of(node)] for values in self.values)

    def outputs(self, node: Node) -> Iterator[Tensor]:
        """What left a node, batch by batch."""
        return (values[node] for values in self.values)


def together(batches: Iterable[Example]) -> list[Example]:
    """The first batches, as many as are looked at together; one at least."""
    chosen: list[Example] = []
    values = 0
    for x in batches:
        values += sum(part.numel() for part in as_tuple(x))
        if chosen and values > VALUES:
            break
        chosen.append(x)
    return chosen
