"""The planner: one decision with its reason per weight layer. Reads only."""

from difflib import get_close_matches

from bnnconvert.binarizers import EXAMPLE_SHAPE, build_weight_binarizer
from bnnconvert.errors import RefusalError, UsageError
from bnnconvert.plan.rules import matches
from bnnconvert.values.inputs import Inputs
from bnnconvert.values.plan import TABLE, LayerFacts, LayerPlan, Plan
from bnnconvert.values.recipe import Match, Recipe, Rule

_LOOKED_UP = f'table that is looked up; a rule with `kind = ["{TABLE}"]`, or its path, makes it 1 bit'


def make_plan(recipe: Recipe, layers: tuple[LayerFacts, ...], *, inputs: Inputs, model_bytes: int) -> Plan:
    """Decide every layer by the first rule that matches it.

    Raises: UsageError if a rule matches nothing; RefusalError if nothing would become binary.
    """
    decided = tuple(_decide(recipe.layers, facts) for facts in layers)
    _require_rules_used(recipe, layers, decided)
    if all(p.decision == "float" for p in decided):
        reasons = "; ".join(dict.fromkeys(f"{p.facts.path}: {p.reason}" for p in decided)) or "it has no weight layers"
        raise RefusalError(
            f"Nothing in this model would become binary with recipe {recipe.name!r} ({reasons}); "
            "use a recipe with other layer rules or a deeper model."
        )
    return Plan(recipe=recipe.name, inputs=inputs, layers=decided, model_bytes=model_bytes)


def _decide(rules: list[Rule], facts: LayerFacts) -> LayerPlan:
    index, rule = next(((i, r) for i, r in enumerate(rules) if _applies(r, facts)), (None, None))
    is_unnamed_table = facts.kind == TABLE and not (rule is not None and _names(rule))
    looked_up = facts.obstacle or _LOOKED_UP if is_unnamed_table else None
    if rule is None:
        why = looked_up or "no rule of the recipe matches it"
        return LayerPlan(facts=facts, decision="float", reason=why, rule=None)
    if rule.keep is not None:
        why = looked_up or rule.keep
        return LayerPlan(facts=facts, decision="float", reason=why, rule=index, int8=rule.int8, predict=rule.predict)
    if facts.obstacle is not None:
        return LayerPlan(facts=facts, decision="float", reason=facts.obstacle, rule=index)
    assert rule.weights is not None
    inputs, gain = (None, None) if facts.kind == TABLE else (rule.inputs, rule.gain)
    weights = build_weight_binarizer(rule.weights, EXAMPLE_SHAPE, where=f"layers[{index}].weights")
    return LayerPlan(
        facts=facts,
        decision="weight-only" if inputs is None else "binary",
        reason=f"weights {rule.weights.name}, "
        + ("float input" if inputs is None else f"input {inputs.name}")
        + ("" if gain is None else f", gain {gain.name}"),
        rule=index,
        weights=rule.weights,
        inputs=inputs,
        gain=gain,
        padding=rule.padding,
        weight_planes=weights.plane_count,
    )


def _applies(rule: Rule, facts: LayerFacts) -> bool:
    """Whether a rule decides a layer. A table multiplies nothing: it becomes binary by a rule that names it alone."""
    return matches(rule.match, facts) and (rule.keep is not None or facts.kind != TABLE or _names(rule))


def _names(rule: Rule) -> bool:
    """Whether a rule names kinds or paths."""
    return rule.match.kind is not None or rule.match.path is not None


def _require_rules_used(recipe: Recipe, layers: tuple[LayerFacts, ...], decided: tuple[LayerPlan, ...]) -> None:
    used = {p.rule for p in decided}
    for index, rule in enumerate(recipe.layers):
        if index in used or rule.optional:
            continue
        shadowed = any(matches(rule.match, facts) for facts in layers)
        why = "only layers that earlier rules decide" if shadowed else "no layer of this model"
        raise UsageError(
            f"Recipe {recipe.name!r}, layers[{index}].match: {_shown(rule.match)} matches {why}; "
            f"{_suggestion(rule.match, layers)}correct it, or set `optional = true`."
        )


def _shown(match: Match) -> str:
    return str(match.model_dump(exclude_none=True) or "everything")


def _suggestion(match: Match, layers: tuple[LayerFacts, ...]) -> str:
    paths = [facts.path for facts in layers]
    wanted = [p for p in match.path or [] if not p.startswith("re:")]
    close = [c for p in wanted for c in get_close_matches(p, paths, n=1, cutoff=0.3)]
    if close:
        return f"the nearest path is {close[0]!r}; "
    kinds = sorted({facts.kind for facts in layers})
    return f"the model's layer kinds are {', '.join(kinds)}; " if match.kind else ""
