"""Replace the ReLUs around binary layers by another activation.

prelu     max(x, 0) + a_c min(x, 0)
rprelu    prelu between two learned shifts (ReActNet)
maxout    b_c max(x, 0) + a_c min(x, 0) (AdaBin)
hardtanh  clip(x, -1, 1), which keeps both signs (BNN, IR-Net)
"""

from collections.abc import Iterator
from typing import ClassVar, Literal

from torch import nn
from torch.fx import GraphModule

from bnnconvert.graph import RELUS, is_call_of, set_module, shape_of
from bnnconvert.layers.maxout import Maxout
from bnnconvert.layers.prelu import ChannelPReLU
from bnnconvert.layers.rprelu import RPReLU
from bnnconvert.rewrite.base import RETRAIN, Promise, Refusal, Rewrite, Site
from bnnconvert.rewrite.regions import touches_binary
from bnnconvert.values.plan import Plan


class ReplaceActivation(Rewrite):
    """ReLU to PReLU, RPReLU, Maxout or Hardtanh, wherever it feeds or follows a binary layer."""

    name: ClassVar[str] = "replace-activation"
    promise: ClassVar[Promise] = RETRAIN

    def __init__(self, *, to: Literal["prelu", "rprelu", "maxout", "hardtanh"], slope: float = 0.25) -> None:
        self.to, self.slope = to, slope

    def find(self, graph: GraphModule, plan: Plan) -> Iterator[Site | Refusal]:
        for node in graph.graph.nodes:
            if is_call_of(graph, node, RELUS) and touches_binary(graph, node):
                yield Site(node)

    def apply(self, graph: GraphModule, site: Site) -> None:
        shape = shape_of(site.node)
        assert shape is not None
        activation: nn.Module
        if self.to == "hardtanh":
            activation = nn.Hardtanh()
        elif self.to == "prelu":
            activation = ChannelPReLU(shape[1], init=self.slope)
        elif self.to == "maxout":
            activation = Maxout(shape[1], slope=self.slope)
        else:
            activation = RPReLU(shape[1], slope=self.slope)
        set_module(graph, str(site.node.target), activation.train(graph.training))
