"""The planner: first matching rule wins, obstacles win over rules, unused rules are errors."""

import pytest
import torch
from torch import nn

from bnnconvert.errors import RefusalError, UsageError
from bnnconvert.plan.planner import make_plan
from bnnconvert.recipe import parse_recipe
from bnnconvert.trace.dataflow import layer_facts
from bnnconvert.trace.tracer import trace
from bnnconvert.values.inputs import specs_of
from bnnconvert.values.plan import Plan
from tests.networks import Residual

HEAD = 'name = "t"\ntitle = "t"\nsource = "t"\nsummary = "t"\nrewrites = ["binarize"]\n'
BINARY = '[[layers]]\nweights = { name = "sign", estimator = "clip" }\ninputs = { name = "sign", estimator = "clip" }\n'


def plan_of(rules: str, module: nn.Module | None = None) -> Plan:
    graph = trace((module or Residual()).eval(), (torch.randn(2, 3, 8, 8),))
    recipe = parse_recipe(HEAD + rules, where="t")
    return make_plan(recipe, layer_facts(graph), inputs=specs_of((1, 3, 8, 8)), model_bytes=123)


def decisions(plan: Plan) -> dict[str, str]:
    return {p.facts.path: p.decision for p in plan.layers}


def test_first_matching_rule_wins() -> None:
    rules = '[[layers]]\nmatch = { path = ["layer1.*"] }\nkeep = "mine"\n' + BINARY
    found = decisions(plan_of(rules))
    assert found["layer1.conv1"] == "float"
    assert found["conv1"] == found["fc"] == found["layer2.conv1"] == "binary"


@pytest.mark.parametrize("pattern", ["layer2.conv?", "re:layer2\\\\.conv[12]"])
def test_paths_match_as_globs_or_whole_regular_expressions(pattern: str) -> None:
    rules = f'[[layers]]\nmatch = {{ path = ["{pattern}"] }}\nkeep = "mine"\n' + BINARY
    kept = [path for path, decision in decisions(plan_of(rules)).items() if decision == "float"]
    assert kept == ["layer2.conv1", "layer2.conv2"]


def test_a_rule_without_inputs_is_weight_only() -> None:
    plan = plan_of('[[layers]]\nweights = { name = "scaled-sign", estimator = "clip" }\n')
    assert set(decisions(plan).values()) == {"weight-only"}


def test_a_rule_that_matches_nothing_names_its_key_and_the_nearest_path() -> None:
    rules = '[[layers]]\nmatch = { path = ["layr1.conv1"] }\nkeep = "mine"\n' + BINARY
    with pytest.raises(UsageError, match=r"layers\[0\]\.match.*matches no layer.*'layer1\.conv1'.*optional"):
        plan_of(rules)
    plan_of(rules.replace('keep = "mine"', 'keep = "mine"\noptional = true'))


def test_a_rule_shadowed_by_earlier_ones_is_an_error() -> None:
    with pytest.raises(UsageError, match="only layers that earlier rules decide"):
        plan_of(BINARY + BINARY)


def test_obstacles_keep_a_layer_float_with_their_reason() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.Conv2d(4, 2, 1))
    plan = plan_of(BINARY, module)
    assert decisions(plan) == {"0": "float", "1": "binary"}
    assert "padding" in plan.layers[0].reason


def test_nothing_to_binarize_is_refused_with_the_reasons() -> None:
    module = nn.Sequential(nn.ConvTranspose2d(3, 3, 3, 2, dilation=2))
    with pytest.raises(RefusalError, match=r"0: its dilation is"):
        plan_of(BINARY, module)


def test_totals_add_up() -> None:
    plan = plan_of('[[layers]]\nmatch = { kind = ["linear"] }\nkeep = "head"\n' + BINARY)
    totals = plan.totals
    assert totals["layers"] == 7
    assert totals["binary_layers"] == 6
    assert totals["packed_bytes"] == sum(p.bytes for p in plan.layers)
    assert plan.to_json()["totals"]["model_bytes"] == 123


def test_bytes_count_every_weight_plane() -> None:
    def packed(bits: int) -> int:
        rule = f'[[layers]]\nweights = {{ name = "dorefa", bits = {bits} }}\ninputs = {{ name = "dorefa", bits = 2 }}\n'
        found = plan_of(rule).layer("layer1.conv1")
        assert found is not None
        return found.bytes

    assert packed(1) == 8 * 9  # 8 filters of 72 bits
    assert packed(3) == 3 * packed(1)
