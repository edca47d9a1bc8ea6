"""What a fold is: an exact simplification of the deployed graph. It finds its sites, then edits one at a time."""

from collections.abc import Iterable
from typing import Any, Protocol

from torch.fx import GraphModule


class Fold(Protocol):
    """One exact simplification."""

    def find(self, deployed: GraphModule) -> Iterable[Any]:
        """Sites where the fold applies; reads only."""

    def apply(self, deployed: GraphModule, site: Any) -> None:
        """Edit the graph at one site and nowhere else."""
