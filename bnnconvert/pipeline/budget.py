"""Mixed precision by measurement: which layers become 1-bit, 4-bit, 8-bit or stay float, within a budget.

Each layer alone is measured at each width, batch norm re-estimated and nothing trained. Layers then get narrower in the
order of what a saved byte costs, until the budget is met:

max-bytes   the first plan that is small enough
max-drop    the last plan whose measured accuracy is at most so many points below the float model's
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from bnnconvert.errors import RefusalError, UsageError
from bnnconvert.load.data import load_data
from bnnconvert.load.model import load_model
from bnnconvert.pipeline.convert import convert_model, inputs_of, traced
from bnnconvert.pipeline.mixture import FLOAT, INT8, Mixture
from bnnconvert.pipeline.recipe_check import check_recipe, unpackable
from bnnconvert.pipeline.rules import text_with_rules
from bnnconvert.pipeline.sensitivity import Ruler
from bnnconvert.pipeline.student import Student, outputs_of, probe_input
from bnnconvert.recipe import parse_recipe, recipe_text
from bnnconvert.trace.dataflow import layer_facts
from bnnconvert.values.budget import Budget, Choice, Fitted
from bnnconvert.values.data import Data, check_fits
from bnnconvert.values.inputs import Shapes
from bnnconvert.values.plan import LayerFacts
from bnnconvert.values.recipe import Recipe
from bnnconvert.values.steering import Steering

UNITS = {"KB": 1e3, "MB": 1e6, "KiB": 2**10, "MiB": 2**20, "B": 1}


def convert_within(
    budget: Budget,
    spec: str,
    recipe: str,
    *,
    model: str | None = None,
    trust_pickle: bool = False,
    input_shape: Shapes | None = None,
    data: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    steering: Steering | None = None,
    samples: int = 512,
    measured: Callable[[int, int], None] | None = None,
    **options: Any,
) -> tuple[Student, Fitted]:
    """`convert_model` with the recipe fitted to a budget; `measured` is told how many layers are done.

    Raises: UsageError, RefusalError; nothing is written then.
    """
    if data is None:
        raise UsageError("A budget takes images to measure on; give them with --data DIR.")
    text = recipe_text(recipe)
    parsed = parse_recipe(text, where=f"recipe {recipe!r}")
    check_recipe(parsed)
    if reason := unpackable(parsed):
        raise RefusalError(f"recipe {recipe!r} has no packed file to keep to a budget, as {reason}; choose another one")
    module = load_model(spec, model=model, trust_pickle=trust_pickle).module
    loaded = load_data(data, mean=mean, std=std)
    inputs, _ = inputs_of(module, input_shape, loaded)
    probe = probe_input(inputs, loaded)
    teacher = traced(module, probe, steering)
    check_fits(loaded, inputs, outputs_of(teacher, probe))
    fitted = fit_budget(
        teacher, layer_facts(teacher), parsed, budget, loaded, probe=probe, samples=samples, progress=measured
    )
    student = convert_model(
        spec,
        recipe,
        model=model,
        trust_pickle=trust_pickle,
        input_shape=input_shape,
        data=data,
        mean=mean,
        std=std,
        steering=steering,
        text=text_with_rules(text, parsed, fitted.rules),
        **options,
    )
    return student, fitted


def parse_budget(text: str) -> Budget:
    """`max-drop=2` in points, or `max-bytes=3MB`.

    Raises: UsageError.
    """
    kind, _, number = text.partition("=")
    unit = next((u for u in UNITS if number.endswith(u)), "") if kind == "max-bytes" else ""
    try:
        limit = float(number.removesuffix(unit)) * UNITS.get(unit, 1)
    except ValueError:
        limit = -1.0
    if kind not in ("max-drop", "max-bytes") or not 0 < limit < float("inf"):
        raise UsageError(f'--budget {text}: give "max-drop=2" (points of accuracy) or "max-bytes=3MB".')
    return Budget(kind, limit)


def fit_budget(
    teacher: GraphModule,
    layers: Sequence[LayerFacts],
    recipe: Recipe,
    budget: Budget,
    data: Data,
    *,
    probe: tuple[Tensor, ...],
    samples: int = 512,
    device: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Fitted:
    """Rules that keep the recipe to the budget.

    Raises: UsageError where no plan does.
    """
    maker = Mixture(teacher, tuple(layers), recipe, data, probe)
    ruler = Ruler(teacher, data, samples=samples, device=device)
    wanted = [(layer, width) for layer in maker.layers for width in maker.widths(layer)]
    choices = []
    for done, (layer, width) in enumerate(wanted):
        if progress is not None:
            progress(done, len(wanted))
        network, plan = maker.make({layer: width})
        chosen = plan.layer(layer)
        assert chosen is not None
        choices.append(Choice(layer, width, chosen.bytes, ruler.cost(network, calibrate=width != INT8)))
    steps = order(choices, {facts.path: facts.float_bytes for facts in layers})

    def fits(length: int) -> bool:
        network, _ = maker.make(dict(steps[:length]))
        if budget.kind == "max-bytes":
            return maker.bytes(network) <= budget.limit
        drop = ruler.teacher_accuracy - ruler.cost(network, calibrate=True).accuracy
        return 100 * drop <= budget.limit

    length = _boundary(len(steps), fits, grows=budget.kind == "max-bytes")
    if not length:
        raise UsageError(f"--budget: {_why(maker, steps, budget)}.")
    widths = dict(steps[:length])
    network, _ = maker.make(widths)
    size = maker.bytes(network)
    return Fitted(
        rules=maker.rules(widths),
        widths={facts.path: widths.get(facts.path, FLOAT) for facts in layers},
        choices=tuple(choices),
        cost=ruler.cost(network, calibrate=True),
        teacher_accuracy=ruler.teacher_accuracy,
        bytes=size,
    )


def _why(maker: Mixture, steps: Sequence[tuple[str, str]], budget: Budget) -> str:
    if budget.kind == "max-drop":
        return "the first layer that gets narrower costs more than that already; give a larger drop"
    network, _ = maker.make(dict(steps))
    least = maker.bytes(network)
    if least > budget.limit:
        return f"the smallest plan of this recipe takes {least:,} B; give more, or another recipe"
    return "the float model is that small already; give fewer bytes"


def order(choices: Sequence[Choice], float_bytes: dict[str, int]) -> list[tuple[str, str]]:
    """Layers and their new widths, the cheapest saving first; a layer only gets narrower.

    The price of a step is what it adds to the layer's divergence over the bytes it saves; one that saves nothing, or
    is dearer and no smaller than another, is left out.
    """
    now = {layer: (size, 0.0) for layer, size in float_bytes.items()}
    steps: list[tuple[str, str]] = []
    left = list(choices)
    while left:
        left = [c for c in left if c.bytes < now[c.layer][0]]
        if not left:
            break

        def price(choice: Choice) -> float:
            size, divergence = now[choice.layer]
            return max(choice.cost.divergence - divergence, 0.0) / (size - choice.bytes)

        best = min(left, key=price)
        now[best.layer] = (best.bytes, max(best.cost.divergence, now[best.layer][1]))
        steps.append((best.layer, best.width))
        left.remove(best)
    return steps


def _boundary(count: int, fits: Callable[[int], bool], *, grows: bool) -> int | None:
    """The first of 0 to `count` that fits, where fitting comes with length; else the last that does. By bisection."""
    low, high = -1, count + 1
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle) == grows:
            high = middle
        else:
            low = middle
    found = high if grows else low
    return found if 0 <= found <= count else None
