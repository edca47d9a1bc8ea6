"""Rules in front of a recipe's own: in the recipe, and in its text as a run keeps it."""

import json
import re
from collections.abc import Sequence

from bnnconvert.values.recipe import Match, Recipe, Rule


def kept_float(paths: Sequence[str], reason: str) -> Rule:
    """The rule that layers at these paths stay float."""
    return Rule(match=Match(path=[f"re:{re.escape(path)}" for path in paths]), keep=reason)


def with_rules(recipe: Recipe, rules: Sequence[Rule]) -> Recipe:
    """The recipe with these rules in front of its own, which may then match nothing."""
    own = [rule.model_copy(update={"optional": True}) for rule in recipe.layers]
    return recipe.model_copy(update={"layers": [*rules, *own]})


def text_with_rules(text: str, recipe: Recipe, rules: Sequence[Rule]) -> str:
    """Text of the recipe with these rules in front of its own, which may then match nothing."""
    own = with_rules(recipe, rules).layers[len(rules) :]
    before, _, rest = text.partition("[[layers]]")
    after = re.search(r"^\[(?!\[layers\]\])", rest, re.MULTILINE)
    return before + rules_as_toml([*rules, *own]) + ("" if after is None else "\n" + rest[after.start() :])


def rules_as_toml(rules: Sequence[Rule]) -> str:
    """The rules as a recipe file has them."""
    blocks = []
    for rule in rules:
        data = rule.model_dump(exclude_defaults=True)
        blocks.append("[[layers]]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in data.items()))
    return "\n".join(blocks) + ("\n" if blocks else "")


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)  # strings, numbers, booleans and lists look alike in both
