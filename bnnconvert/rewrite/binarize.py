"""Replace the planned layers by their binary twins, which share the float parameters as latent weights."""

from collections.abc import Iterator
from typing import ClassVar

from torch import nn
from torch.fx import GraphModule, Node

from bnnconvert.binarizers import build_input_binarizer, build_weight_binarizer
from bnnconvert.binarizers.base import WeightBinarizer
from bnnconvert.errors import UsageError
from bnnconvert.gains import build_gain
from bnnconvert.gains.base import GainSite
from bnnconvert.graph import module_of, set_module, shape_of
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.layers.conv2d import BinaryConv2d
from bnnconvert.layers.embedding import BinaryEmbedding
from bnnconvert.layers.linear import BinaryLinear
from bnnconvert.rewrite.base import RETRAIN, Promise, Refusal, Rewrite, Site
from bnnconvert.values.plan import LayerPlan, Plan


class Binarize(Rewrite):
    """Binarize every layer that the plan calls binary or weight-only."""

    name: ClassVar[str] = "binarize"
    promise: ClassVar[Promise] = RETRAIN

    def find(self, graph: GraphModule, plan: Plan) -> Iterator[Site | Refusal]:
        found = set[str]()  # a layer that is called twice is one layer
        for node in graph.graph.nodes:
            layer = plan.layer(str(node.target)) if node.op == "call_module" else None
            module = module_of(graph, node)
            is_planned = layer is not None and layer.decision != "float"
            if (
                is_planned
                and isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding)
                and str(node.target) not in found
            ):
                found.add(str(node.target))
                yield Site(node, layer=layer)

    def apply(self, graph: GraphModule, site: Site) -> None:
        layer, module = site.layer, module_of(graph, site.node)
        assert isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding)
        assert layer is not None
        assert layer.weights is not None
        where = f"layers[{layer.rule}]"
        try:
            weights = build_weight_binarizer(layer.weights, tuple(module.weight.shape), where=f"{where}.weights")
        except UsageError as error:  # a method that does not fit this layer's shape
            raise UsageError(f"{layer.facts.path}: {error}") from error
        if isinstance(module, nn.Embedding):
            twin: BinaryLayer = BinaryEmbedding.from_float(module, weight_binarizer=weights)
        else:
            twin = _product(module, site.node, layer, weights, where=where)
        latent = weights.latent(twin.weight)
        if latent is not twin.weight:
            twin.weight = nn.Parameter(latent.detach().clone())
        weights.calibrate(twin.weight.detach())
        if twin.gain is not None:
            twin.gain.calibrate(weights.relaxed(twin.weight.detach()))
        set_module(graph, layer.facts.path, twin.train(module.training))


def _product(
    module: nn.Conv2d | nn.Linear, node: Node, layer: LayerPlan, weights: WeightBinarizer, *, where: str
) -> BinaryLayer:
    """Binary twin of a layer that multiplies."""
    channels = module.in_channels if isinstance(module, nn.Conv2d) else module.in_features
    inputs = None if layer.inputs is None else build_input_binarizer(layer.inputs, channels, where=f"{where}.inputs")
    gain = None
    if layer.gain is not None:
        gain = build_gain(layer.gain, _gain_site(module, node, layer), where=f"{where}.gain")
    if isinstance(module, nn.Conv2d):
        return BinaryConv2d.from_float(
            module, weight_binarizer=weights, input_binarizer=inputs, pad_bit=layer.padding, gain=gain
        )
    return BinaryLinear.from_float(module, weight_binarizer=weights, input_binarizer=inputs, gain=gain)


def _gain_site(module: nn.Conv2d | nn.Linear, node: Node, layer: LayerPlan) -> GainSite:
    """What a gain knows of its layer."""
    path, binary = layer.facts.path, layer.inputs is not None
    if isinstance(module, nn.Linear):
        return GainSite(path=path, inputs=module.in_features, outputs=module.out_features, has_binary_inputs=binary)
    shape = shape_of(node)
    assert shape is not None
    assert not isinstance(module.padding, str), "the planner keeps convolutions with named padding float"
    return GainSite(
        path=path,
        inputs=module.in_channels,
        outputs=module.out_channels,
        kernel=tuple(module.kernel_size),
        stride=tuple(module.stride),
        padding=tuple(module.padding),
        dilation=tuple(module.dilation),
        groups=module.groups,
        size=shape[2:],
        has_binary_inputs=binary,
    )
