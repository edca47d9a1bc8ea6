"""What a rewrite is: `find` reads and decides, `apply` edits at one site. The runner does everything else."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule, Node

from bnnconvert.values.plan import LayerPlan, Plan


@dataclass(frozen=True)
class Promise:
    """How the student's evaluation output may differ after a rewrite; no tolerance means that it must be retrained."""

    name: str
    rtol: float | None = None
    atol: float | None = None


EXACT = Promise("EXACT", rtol=1e-4, atol=1e-5)
"""Equal in real arithmetic; the tolerance is float rounding through the layers that follow."""
RETRAIN = Promise("RETRAIN")
"""Another function, which fine-tuning has to fit."""


@dataclass(frozen=True)
class Site:
    """A place where a rewrite applies: the node it is about and whatever else `apply` needs."""

    node: Node
    others: tuple[Node, ...] = ()
    layer: LayerPlan | None = None


@dataclass(frozen=True)
class Refusal:
    """A place where a rewrite does not apply although one might expect it."""

    path: str
    reason: str


class Rewrite(ABC):
    """One graph rewrite. Sites that one `find` gives must be independent of each other."""

    name: ClassVar[str]
    promise: ClassVar[Promise]
    source: ClassVar[str] = ""
    """The paper whose step it is; none for what only puts a graph in order."""

    @abstractmethod
    def find(self, graph: GraphModule, plan: Plan) -> Iterator[Site | Refusal]:
        """Places to rewrite and places refused, reading only."""

    @abstractmethod
    def apply(self, graph: GraphModule, site: Site) -> None:
        """Edit the graph at one site; the runner puts the nodes in order again."""

    def replan(self, graph: GraphModule, plan: Plan) -> Plan:
        """The plan after the rewrite, where that changes the size or number of layers."""
        return plan
