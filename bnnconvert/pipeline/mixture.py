"""Students in which every layer has a width of its own: 1 bit as the recipe has it, 4 bits, 8 bits or float."""

import copy

from torch import Tensor
from torch.fx import GraphModule

from bnnconvert.layers.int8 import int8_layer
from bnnconvert.lower.deploy import deploy_bytes
from bnnconvert.lower.edges import calibrate, with_edges
from bnnconvert.pipeline.recipe_check import check_recipe
from bnnconvert.pipeline.student import calibration_batches
from bnnconvert.plan.planner import make_plan
from bnnconvert.rewrite.runner import run_rewrites
from bnnconvert.values.data import Data
from bnnconvert.values.inputs import specs_of_example
from bnnconvert.values.plan import LayerFacts, LayerPlan, Plan
from bnnconvert.values.recipe import Match, Named, Recipe, Rule

FLOAT, INT8, FOUR, BINARY = "float", "int8", "4-bit", "binary"
"""Widths."""
FOUR_BITS = Named(name="fqn", bits=4)  # type: ignore[call-arg]


class Mixture:
    """Makes students in which every layer has a width of its own."""

    def __init__(
        self,
        teacher: GraphModule,
        layers: tuple[LayerFacts, ...],
        recipe: Recipe,
        data: Data,
        probe: tuple[Tensor, ...],
    ) -> None:
        self._teacher, self._facts, self._recipe, self._data, self._probe = teacher, layers, recipe, data, probe
        self._inputs = specs_of_example(probe)
        plan = make_plan(recipe, layers, inputs=self._inputs, model_bytes=0)
        self._plans = {layer.facts.path: layer for layer in plan.layers}
        self._rewrites = check_recipe(recipe)

    @property
    def layers(self) -> list[str]:
        return [facts.path for facts in self._facts]

    def widths(self, path: str) -> list[str]:
        """What the layer can be besides float; one that the recipe keeps float gets no narrower than 8 bits."""
        plan, found = self._plans[path], []
        if plan.facts.obstacle is None and int8_layer(self._teacher.get_submodule(path), 1.0) is not None:
            found.append(INT8)
        if plan.decision != "float":
            found += [FOUR, BINARY]
        return found

    def rules(self, widths: dict[str, str]) -> tuple[Rule, ...]:
        """Rules for the layers that are not as the recipe has them."""
        made = []
        for path, plan in self._plans.items():
            width, match = widths.get(path, FLOAT), Match(path=[path])
            if width == FOUR:
                made.append(Rule(match=match, weights=FOUR_BITS, inputs=FOUR_BITS))
            elif width == INT8:
                made.append(Rule(match=match, keep="the budget: 8 bits", int8=True))
            elif width == FLOAT and plan.decision != "float":
                made.append(Rule(match=match, keep="the budget: narrower costs too much"))
        return tuple(made)

    def make(self, widths: dict[str, str]) -> tuple[GraphModule, Plan]:
        """A student with these widths, all other layers float; 8-bit layers calibrated."""
        plans = tuple(self._planned(path, widths.get(path, FLOAT)) for path in self._plans)
        plan = Plan(recipe=self._recipe.name, inputs=self._inputs, layers=plans)
        network = copy.deepcopy(self._teacher)
        plan = run_rewrites(network, plan, self._rewrites, probe=self._probe)
        eights = [path for path, width in widths.items() if width == INT8]
        if eights:
            batches = [next(iter(calibration_batches(self._data)))]
            network = with_edges(network, calibrate(network.eval(), eights, batches))
        return network, plan

    def bytes(self, network: GraphModule) -> int:
        """Tensor bytes of the artifact of such a student."""
        return deploy_bytes(network, self._probe)

    def _planned(self, path: str, width: str) -> LayerPlan:
        plan = self._plans[path]
        if width == BINARY:
            return plan
        four = FOUR_BITS if width == FOUR else None
        return LayerPlan(
            facts=plan.facts,
            decision="float" if four is None else "binary",
            reason=width,
            rule=None,
            weights=four,
            inputs=four,
            int8=width == INT8,
        )
