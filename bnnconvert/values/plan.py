"""What a recipe does to one model: a decision with its reason per layer, and what each rewrite did."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from bnnconvert.bits import row_bytes
from bnnconvert.values.inputs import Inputs, described
from bnnconvert.values.recipe import Named

Decision = Literal["binary", "weight-only", "float"]
TABLE = "embedding"
"""Kind of the layers that look rows up and multiply nothing."""


@dataclass(frozen=True, kw_only=True)
class LayerFacts:
    """What the graph says about one weight layer.

    Shapes: input_shape, output_shape with the batch of the example; weight_shape (O, I / groups, ...).
    """

    path: str
    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    parameters: int
    is_first: bool = False
    is_last: bool = False
    is_depthwise: bool = False
    is_shortcut: bool = False
    obstacle: str | None = None
    """Why this layer cannot be made binary at all, or None."""

    @property
    def macs(self) -> int:
        """Multiply-adds for one sample."""
        if self.kind == TABLE:
            return 0
        if self.kind.startswith("conv_transpose"):
            positions = self.input_shape[2:]
        else:
            positions = self.output_shape[1:-1] if self.kind == "linear" else self.output_shape[2:]
        return math.prod(self.weight_shape) * math.prod(positions)

    @property
    def float_bytes(self) -> int:
        """Bytes of the float weights and bias."""
        return 4 * self.parameters

    @property
    def int8_bytes(self) -> int:
        """Bytes of the weights in 8 bits, with a scale and a bias per output channel."""
        return math.prod(self.weight_shape) + 8 * self.weight_shape[0]

    def packed_bytes(self, planes: int = 1) -> int:
        """Bytes of the weights as `planes` bit planes, each filter padded to a byte."""
        k = 1
        for size in self.weight_shape[1:]:
            k *= size
        return planes * self.weight_shape[0] * row_bytes(k)


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """The decision for one layer."""

    facts: LayerFacts
    decision: Decision
    reason: str
    rule: int | None
    """Index of the recipe's rule that decided, or None where none matched."""
    weights: Named | None = None
    inputs: Named | None = None
    gain: Named | None = None
    padding: Literal["zero", "one"] = "zero"
    int8: bool = False
    """Whether the float layer is stored in 8 bits."""
    predict: float | None = None
    """Share of positive outputs that the float layer's predictor may miss; None for a layer without one."""
    weight_planes: int = 1
    student: LayerFacts | None = None
    """Facts about the layer in the student, where a rewrite has changed its size."""
    is_copy: bool = False
    """Whether a rewrite has made the layer; the float model does not have it."""

    @property
    def now(self) -> LayerFacts:
        """Facts about the layer as it is in the student."""
        return self.student or self.facts

    @property
    def float_bytes(self) -> int:
        """Bytes of weights and bias in the float model."""
        return 0 if self.is_copy else self.facts.float_bytes

    @property
    def bytes(self) -> int:
        """Weight bytes after conversion."""
        if self.int8:
            return self.now.int8_bytes
        if self.predict is not None:
            return self.now.float_bytes + self.now.packed_bytes()
        return self.now.float_bytes if self.decision == "float" else self.now.packed_bytes(self.weight_planes)


def _renamed(layer: LayerPlan, path: str) -> LayerPlan:
    student = None if layer.student is None else replace(layer.student, path=path)
    return replace(layer, facts=replace(layer.facts, path=path), student=student)


@dataclass(frozen=True, kw_only=True)
class RewriteRecord:
    """What one rewrite did: how often, and where it would not and why."""

    name: str
    promise: str
    count: int
    refusals: tuple[str, ...] = ()

    def inside(self, path: str) -> "RewriteRecord":
        """The record of a rewrite in the graph at `path`, as one of the whole."""
        return replace(self, refusals=tuple(f"{path}.{refusal}" for refusal in self.refusals))

    def __add__(self, other: "RewriteRecord") -> "RewriteRecord":
        """What the rewrite did in two graphs."""
        return replace(self, count=self.count + other.count, refusals=self.refusals + other.refusals)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One decision per weight layer, in execution order, and the record of the rewrites."""

    recipe: str
    inputs: Inputs
    layers: tuple[LayerPlan, ...]
    rewrites: tuple[RewriteRecord, ...] = ()
    model_bytes: int = 0
    """Bytes of all parameters and buffers of the float model."""
    predicted_bytes: int | None = None
    """Bytes of all tensors of the packed artifact, golden input and output apart."""
    warnings: tuple[str, ...] = ()

    def layer(self, path: str) -> LayerPlan | None:
        """Decision for the layer at `path`."""
        return next((p for p in self.layers if p.facts.path == path), None)

    @property
    def predicted(self) -> dict[str, float]:
        """Float layers with a predictor of positive outputs, and the share of those that it may miss."""
        return {p.facts.path: p.predict for p in self.layers if p.predict is not None}

    def part(self, path: str) -> "Plan":
        """The plan for the graph at `path` alone, with the paths that layers have in it."""
        before = f"{path}."
        inside = [p for p in self.layers if p.facts.path.startswith(before)]
        return replace(self, layers=tuple(_renamed(p, p.facts.path.removeprefix(before)) for p in inside), rewrites=())

    def with_part(self, path: str, part: "Plan") -> "Plan":
        """The plan with that for the graph at `path` in the place of what it says about it."""
        before = f"{path}."
        layers = [p for p in self.layers if not p.facts.path.startswith(before)]
        index = next((i for i, p in enumerate(self.layers) if p.facts.path.startswith(before)), len(layers))
        layers[index:index] = [_renamed(p, before + p.facts.path) for p in part.layers]
        return replace(self, layers=tuple(layers))

    def with_rewrites(self, records: list[RewriteRecord]) -> "Plan":
        """The plan with what the rewrites did."""
        return replace(self, rewrites=tuple(records))

    @property
    def totals(self) -> dict[str, int]:
        """Sums over the layers; operations are multiply-adds for one sample."""
        binary = [p for p in self.layers if p.decision != "float"]
        return {
            "layers": len(self.layers),
            "binary_layers": len(binary),
            "macs": sum(p.now.macs for p in self.layers),
            "binary_macs": sum(p.now.macs for p in binary),
            "float_bytes": sum(p.float_bytes for p in self.layers),
            "packed_bytes": sum(p.bytes for p in self.layers),
        }

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data."""
        layers = [
            asdict(p.facts)
            | {"macs": p.now.macs, "float_bytes": p.float_bytes, "packed_bytes": p.bytes}
            | {"weight_shape": p.now.weight_shape}
            | {"name": p.facts.path, "decision": p.decision, "int8": p.int8, "reason": p.reason, "rule": p.rule}
            | {"predict": p.predict}
            | {"gain": None if p.gain is None else p.gain.name}
            for p in self.layers
        ]
        return {
            "recipe": self.recipe,
            "inputs": described(self.inputs),
            "layers": layers,
            "rewrites": [asdict(r) for r in self.rewrites],
            "warnings": list(self.warnings),
            "totals": self.totals | {"model_bytes": self.model_bytes, "predicted_artifact_bytes": self.predicted_bytes},
        }
