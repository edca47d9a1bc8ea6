"""Mixed precision within a budget, on digits."""

import tomllib

import pytest

from bnnconvert.errors import UsageError
from bnnconvert.pipeline.budget import order, parse_budget
from bnnconvert.pipeline.rules import rules_as_toml
from bnnconvert.values.budget import Budget, Choice
from bnnconvert.values.recipe import Match, Named, Rule
from bnnconvert.values.sensitivity import Cost


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("max-drop=2", 2),
        ("max-drop=0.5", 0.5),
        ("max-bytes=3MB", 3e6),
        ("max-bytes=64KiB", 65536),
        ("max-bytes=900", 900),
    ],
)
def test_budgets_are_read(text: str, limit: float) -> None:
    assert parse_budget(text) == Budget(text.partition("=")[0], limit)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "max-drop",
        "max-drop=",
        "max-drop=-1",
        "max-drop=2MB",
        "max-bytes=3TB",
        "max-bits=3",
        "max-drop=nan",
        "max-bytes=inf",
    ],
)
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="max-drop=2"):
        parse_budget(text)


def test_layers_get_narrower_where_a_byte_costs_least() -> None:
    # a: 8 bits save 75 for nothing; binary saves 22 more for 1. b: binary saves 90 for 0.09, its 4 bits are dearer.
    choices = [
        Choice("a", "int8", 25, Cost(0.0, 1.0)),
        Choice("a", "binary", 3, Cost(1.0, 0.5)),
        Choice("b", "4-bit", 20, Cost(0.2, 0.9)),
        Choice("b", "binary", 10, Cost(0.09, 0.9)),
    ]
    assert order(choices, {"a": 100, "b": 100}) == [("a", "int8"), ("b", "binary"), ("a", "binary")]


def test_a_width_that_saves_nothing_is_left_out() -> None:
    assert order([Choice("a", "int8", 120, Cost(0.0, 1.0))], {"a": 100}) == []


def test_rules_survive_the_way_through_toml() -> None:
    rules = (
        Rule(match=Match(path=["layer1.0.conv1"]), keep='the "budget": 8 bits', int8=True),
        Rule(match=Match(path=["fc"]), weights=Named(name="fqn", bits=4), inputs=Named(name="fqn", bits=4)),
    )
    found = tomllib.loads(rules_as_toml(rules))["layers"]
    assert tuple(Rule.model_validate(rule) for rule in found) == rules
