"""Sizes that depend on the number of samples, written into a graph as arithmetic on the input's first size."""

import operator
from functools import reduce
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch.fx import Graph, Node
from torch.utils._sympy.functions import FloorDiv, Mod, PythonMod


class Sizes:
    """The nodes behind symbolic sizes of one graph, each made once and put behind the placeholder."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._made: dict[Any, Node] = {}

    def begin(self, placeholder: Node, size: torch.SymInt) -> None:
        """Give the number of samples its node."""
        with self._graph.inserting_after(placeholder):
            self._made[size.node.expr] = self._graph.call_method("size", (placeholder, 0))

    def node(self, size: torch.SymInt) -> Node | int:
        """Node of a size, or the number where it does not depend on the samples.

        Raises: NotImplementedError for arithmetic that sizes do not come by.
        """
        return self._of(sympy.simplify(size.node.expr))

    def _of(self, expression: Any) -> Node | int:
        if expression.is_Integer:
            return int(expression)
        if expression not in self._made:
            self._made[expression] = self._build(expression)
        return self._made[expression]

    def _build(self, expression: Any) -> Node:
        parts = [self._of(part) for part in expression.args]
        if isinstance(expression, sympy.Add):
            return self._fold(operator.add, parts)
        if isinstance(expression, sympy.Mul):
            return self._fold(operator.mul, parts)
        if isinstance(expression, FloorDiv):
            return self._graph.call_function(operator.floordiv, tuple(parts))
        if isinstance(expression, Mod | PythonMod):
            return self._graph.call_function(operator.mod, tuple(parts))
        raise NotImplementedError(f"the size {expression} is no sum, product or quotient")

    def _fold(self, function: Any, parts: list[Node | int]) -> Node:
        result = reduce(lambda a, b: self._graph.call_function(function, (a, b)), parts)
        assert isinstance(result, Node)
        return result
