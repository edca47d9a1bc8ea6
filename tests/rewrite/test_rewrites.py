"""Each rewrite: where it applies, how often, what it refuses, and that its promise holds."""

import copy
import operator
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

from bnnconvert.errors import RefusalError, UsageError, VerificationError
from bnnconvert.graph import binary_inputs, input_of, is_call_of, module_of
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.layers.channel_scale import ChannelScale
from bnnconvert.layers.maxout import Maxout
from bnnconvert.layers.rprelu import RPReLU
from bnnconvert.plan.planner import make_plan
from bnnconvert.recipe import parse_recipe
from bnnconvert.rewrite import REWRITES
from bnnconvert.rewrite.base import EXACT, Refusal, Rewrite, Site
from bnnconvert.rewrite.dead_signs import check_signs, dead_shares
from bnnconvert.rewrite.runner import build_rewrites, run_rewrites
from bnnconvert.trace.dataflow import layer_facts
from bnnconvert.trace.tracer import trace
from bnnconvert.values.inputs import specs_of
from bnnconvert.values.plan import Plan
from bnnconvert.values.recipe import Checks
from tests.networks import Block, Functional, Residual, plain, randomise

RECIPE = """
name = "test"
title = "test"
source = "test"
summary = "test"
rewrites = [{rewrites}]
[[layers]]
match = {{ position = "first" }}
keep = "first"
optional = true
[[layers]]
match = {{ position = "last" }}
keep = "last"
optional = true
[[layers]]
match = {{ shortcut = true }}
keep = "shortcut"
optional = true
[[layers]]
weights = {{ name = "scaled-sign", estimator = "clip" }}
inputs = {{ name = "sign", estimator = "clip" }}
optional = true
"""


def rewritten(module: nn.Module, *rewrites: str, shape: tuple[int, ...] = (4, 3, 8, 8)) -> tuple[GraphModule, Plan]:
    torch.manual_seed(0)
    x = torch.randn(shape)
    recipe = parse_recipe(RECIPE.format(rewrites=", ".join(rewrites)), where="test")
    graph = trace(copy.deepcopy(module).eval(), (x,))
    plan = make_plan(recipe, layer_facts(graph), inputs=specs_of((1, *shape[1:])), model_bytes=0)
    return graph, run_rewrites(graph, plan, build_rewrites(recipe), probe=(x,))


def order(graph: GraphModule) -> list[str]:
    return [
        type(module_of(graph, n)).__name__ if n.op == "call_module" else n.target.__name__
        for n in graph.graph.nodes
        if n.op in ("call_module", "call_function")
    ]


def counts(plan: Plan) -> dict[str, int]:
    return {r.name: r.count for r in plan.rewrites}


def test_binarize_shares_the_float_parameters_and_keeps_paths() -> None:
    graph, plan = rewritten(Residual(), '"binarize"')
    assert counts(plan) == {"binarize": 4}
    binary = {path for path, m in graph.named_modules() if isinstance(m, BinaryLayer)}
    assert binary == {"layer1.conv1", "layer1.conv2", "layer2.conv1", "layer2.conv2"}
    assert {p.facts.path for p in plan.layers if p.decision == "binary"} == binary


def test_pool_moves_before_batch_norm_and_negative_gammas_are_turned() -> None:
    module = randomise(plain())
    assert (module[4].weight < 0).any()
    graph, plan = rewritten(module, '"reorder-pool"')
    assert counts(plan) == {"reorder-pool": 1}
    assert order(graph)[3:7] == ["Conv2d", "MaxPool2d", "BatchNorm2d", "ReLU"]
    assert (graph.get_submodule("4").weight >= 0).all()
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(graph(x), module(x), rtol=1e-5, atol=1e-6)


def test_pool_without_batch_norm_moves_before_the_activation() -> None:
    module = Functional().eval()
    graph, _ = rewritten(module, '"reorder-pool"', shape=(4, 1, 8, 8))
    names = order(graph)
    assert names[names.index("Conv2d", 6) : names.index("Conv2d", 6) + 3] == ["Conv2d", "MaxPool2d", "ReLU"]
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(graph(x), module(x))


def test_pool_after_a_shared_batch_norm_is_refused() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.norm, self.pool, self.fc = nn.BatchNorm2d(4), nn.MaxPool2d(8), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.a(self.stem(x)))
            return self.fc(self.pool(self.norm(self.b(x))).flatten(1))

    before = Shared().eval()
    graph, plan = rewritten(before, '"reorder-pool"')
    assert counts(plan) == {"reorder-pool": 0}
    assert "called more than once" in plan.rewrites[0].refusals[0]
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(graph(x), before(x))


def test_batch_norm_is_inserted_where_a_sign_is_not_centred_and_only_there() -> None:
    graph, plan = rewritten(Residual(), '"binarize"', '"remove-relu"', '"insert-batch-norm"')
    assert counts(plan) == {"binarize": 4, "remove-relu": 2, "insert-batch-norm": 2}
    for node in binary_inputs(graph):
        assert isinstance(module_of(graph, input_of(node)), nn.BatchNorm2d)
    assert input_of(next(n for n in graph.graph.nodes if n.target == "layer1.conv2")).target == "layer1.bn1"
    assert input_of(next(n for n in graph.graph.nodes if n.target == "layer1.conv1")).target == "layer1.conv1_norm"


def test_inserted_batch_norm_starts_as_the_identity() -> None:
    before, _ = rewritten(Residual(), '"binarize"')
    after, _ = rewritten(Residual(), '"binarize"', '"insert-batch-norm"')
    norm = after.get_submodule("layer1.conv1_norm")
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(norm(x), x, rtol=1e-5, atol=1e-5)
    assert set(dict(before.named_modules())) < set(dict(after.named_modules()))


STANDARD = '{ name = "insert-batch-norm", affine = false }'


def test_a_quantizer_with_fixed_levels_reads_a_batch_norm_without_scale_and_shift() -> None:
    graph, plan = rewritten(Residual(), '"binarize"', '{ name = "remove-relu", where = "everywhere" }', STANDARD)
    assert counts(plan)["insert-batch-norm"] == 4  # two inserted on the stream, two in the blocks lose their own
    readers = {str(node.target): module_of(graph, input_of(node)) for node in binary_inputs(graph)}
    assert all(isinstance(norm, nn.BatchNorm2d) and not norm.affine for norm in readers.values())
    assert readers["layer1.conv2"] is graph.get_submodule("layer1.bn1")
    assert readers["layer1.conv1"] is graph.get_submodule("layer1.conv1_norm")
    for path in ("bn1", "layer1.bn2", "layer2.downsample.1"):  # these are summed, and keep what they have learned
        assert graph.get_submodule(path).affine


def test_a_batch_norm_that_turns_a_channel_keeps_its_scale_under_one_without() -> None:
    net = Residual()
    with torch.no_grad():
        net.layer1.bn1.weight[2] = -0.5
        net.layer1.bn1.running_mean.fill_(0.25)
        net.layer2.bn1.running_mean.fill_(0.5)
    graph, _ = rewritten(net, '"binarize"', '"remove-relu"', STANDARD)
    assert graph.get_submodule("layer1.bn1").affine
    assert order(graph).count("BatchNorm2d") == 6 + 3
    assert graph.get_submodule("layer2.bn1").running_mean.tolist() == [0.5] * 12  # what it has measured stays


def test_a_batch_norm_in_front_of_a_prelu_is_not_the_sign_s_own() -> None:
    prelu = '"binarize"', '{ name = "replace-activation", to = "prelu" }'
    through, _ = rewritten(Residual(), *prelu, '"insert-batch-norm"')
    behind = {str(node.target): module_of(through, input_of(node)) for node in binary_inputs(through)}
    assert all(isinstance(activation, nn.PReLU) for activation in behind.values())
    own, plan = rewritten(Residual(), *prelu, '{ name = "insert-batch-norm", directly = true }')
    assert counts(plan)["insert-batch-norm"] == 4
    assert all(isinstance(module_of(own, input_of(node)), nn.BatchNorm2d) for node in binary_inputs(own))


def test_batch_norm_around_the_last_layer() -> None:
    options = '{ name = "insert-batch-norm", before_signs = false, before_last = true, after_last = true }'
    graph, plan = rewritten(Residual(), '"binarize"', options)
    assert counts(plan)["insert-batch-norm"] == 2
    assert order(graph)[-3:] == ["BatchNorm1d", "Linear", "BatchNorm1d"]


def test_a_binary_layer_without_batch_norm_gets_one_behind_its_pool() -> None:
    names = '"reorder-pool"', '"binarize"', '{ name = "insert-batch-norm", before_signs = false, after_layers = true }'
    graph, _ = rewritten(Functional(), *names, shape=(4, 1, 8, 8))
    made = order(graph)
    at = [i for i, name in enumerate(made) if name == "BinaryConv2d"]
    assert [made[i : i + 3] for i in at] == [["BinaryConv2d", "MaxPool2d", "BatchNorm2d"]] * 2
    assert made[made.index("BinaryLinear") + 1] == "BatchNorm1d"


@pytest.mark.parametrize("activation", [nn.ReLU6, lambda: nn.Hardtanh(0.0, 4.0)], ids=["relu6", "clip"])
def test_an_activation_without_negative_values_is_not_centred(activation: Callable[[], nn.Module]) -> None:
    """ReLU6 is a Hardtanh to torch; behind it every sign is +1."""
    net = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), activation(), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), activation()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)),
    )
    graph, plan = rewritten(net, '"binarize"', '"insert-batch-norm"')
    assert counts(plan)["insert-batch-norm"] == 1
    assert dead_shares(graph, (torch.randn(4, 3, 8, 8),)) == {}


def test_relu6_is_treated_as_relu_is() -> None:
    class Six(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
            self.norm, self.fc = nn.BatchNorm2d(6), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu6(self.norm(self.a(x)))
            return self.fc(F.relu6(self.c(self.b(x))).mean((2, 3)))

    graph, plan = rewritten(Six(), '"binarize"', '"remove-relu"')
    assert counts(plan)["remove-relu"] == 1
    graph, plan = rewritten(Six(), '"binarize"', '{ name = "replace-activation", to = "rprelu" }')
    assert counts(plan)["replace-activation"] == 2
    assert order(graph).count("RPReLU") == 2


def test_relu_stays_where_something_else_than_a_sign_reads_it() -> None:
    graph, _ = rewritten(Residual(), '"binarize"', '"remove-relu"')
    assert order(graph).count("ReLU") == 3  # the stem's and the two after additions
    everywhere, _ = rewritten(Residual(), '"binarize"', '{ name = "remove-relu", where = "everywhere" }')
    assert "ReLU" not in order(everywhere)
    feeding, _ = rewritten(Residual(), '"binarize"', '{ name = "remove-relu", where = "feeding" }')
    assert order(feeding).count("ReLU") == 1  # the last addition's
    stem, _ = rewritten(Residual(), '"binarize"', '{ name = "remove-relu", where = "stem" }')
    assert order(stem).count("ReLU") == 4
    assert order(stem)[:3] == ["Conv2d", "BatchNorm2d", "BinaryConv2d"]


@pytest.mark.parametrize(
    ("to", "kind"), [("prelu", nn.PReLU), ("rprelu", RPReLU), ("maxout", Maxout), ("hardtanh", nn.Hardtanh)]
)
def test_activations_are_replaced_in_place(to: str, kind: type[nn.Module]) -> None:
    graph, plan = rewritten(Residual(), '"binarize"', f'{{ name = "replace-activation", to = "{to}" }}')
    assert counts(plan)["replace-activation"] == 5
    assert isinstance(graph.get_submodule("layer2.relu_1"), kind)


def test_activations_of_a_float_head_are_left_alone() -> None:
    head = nn.Sequential(plain()[:-1], nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))
    recipe = parse_recipe(
        RECIPE.format(rewrites='"binarize", { name = "replace-activation", to = "prelu" }').replace(
            'position = "last"', 'kind = ["linear"]'
        ),
        where="test",
    )
    x = torch.randn(4, 3, 8, 8)
    graph = trace(head.eval(), (x,))
    plan = make_plan(recipe, layer_facts(graph), inputs=specs_of((1, 3, 8, 8)), model_bytes=0)
    run_rewrites(graph, plan, build_rewrites(recipe), probe=(x,))
    assert isinstance(graph.get_submodule("2"), nn.ReLU)
    assert isinstance(graph.get_submodule("0.2"), nn.PReLU)


def test_every_convolution_of_a_block_gets_its_own_shortcut() -> None:
    graph, plan = rewritten(Residual(), '"binarize"', '"shortcut-per-conv"')
    assert counts(plan)["shortcut-per-conv"] == 4
    adds = [n for n in graph.graph.nodes if n.target is operator.add]
    pairs = {tuple(sorted(str(i.name) for i in a.all_input_nodes)) for a in adds}
    assert pairs == {
        ("layer1_bn1", "relu"),  # x1 = U1(x) + x
        ("layer1_bn2", "layer1_relu"),  # U2(x1') + x1'
        ("layer2_bn1", "layer2_downsample_1"),  # x1 = U1(x) + projection
        ("layer2_bn2", "layer2_relu"),
    }


def test_a_projection_that_the_user_computes_late_is_moved_in_front_of_its_new_reader() -> None:
    class Late(Block):
        def forward(self, x: Tensor) -> Tensor:
            out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            assert self.downsample is not None
            return self.relu(out + self.downsample(x))

    module = nn.Sequential(nn.Conv2d(3, 4, 1), Late(4, 8, 2), nn.Flatten(), nn.Linear(128, 2))
    graph, plan = rewritten(module, '"binarize"', '"shortcut-per-conv"')
    assert counts(plan)["shortcut-per-conv"] == 2
    graph.graph.lint()
    assert graph(torch.randn(2, 3, 8, 8)).shape == (2, 2)


def test_a_plain_chain_gets_shortcuts_where_shapes_agree() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)
    )
    graph, plan = rewritten(module, '"binarize"', '"shortcut-per-conv"')
    assert counts(plan)["shortcut-per-conv"] == 1
    assert order(graph) == ["Conv2d", "BinaryConv2d", "BatchNorm2d", "add", "BinaryConv2d", "Conv2d"]
    assert "3: no identity shortcut fits" in plan.rewrites[1].refusals[0]


def test_a_shortcut_that_the_rewrite_has_made_is_not_taken_for_the_models_own() -> None:
    # 4: unequal channels; 7 and 10 get shortcuts, the first of them right behind 4.
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    for inputs in (8, 16, 16):
        layers += [nn.Conv2d(inputs, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    graph, plan = rewritten(module, '"binarize"', '"shortcut-per-conv"')
    assert counts(plan)["shortcut-per-conv"] == 2
    adds = [node for node in graph.graph.nodes if node.target is operator.add]
    assert [[str(part.target) for part in add.all_input_nodes] for add in adds] == [["7", "5"], ["10", "8"]]


def test_a_block_whose_convolutions_give_unequal_shapes_is_refused_whole() -> None:
    class Bottleneck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
            self.a, self.b, self.c = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(self.c(self.b(self.a(x))) + x)

    graph, plan = rewritten(Bottleneck(), '"binarize"', '"shortcut-per-conv"')
    assert counts(plan)["shortcut-per-conv"] == 0
    assert "unequal shapes" in plan.rewrites[1].refusals[0]
    assert order(graph).count("add") == 1


@pytest.mark.parametrize("size", [8, 7])
def test_a_strided_shortcut_pools_instead(size: int) -> None:
    graph, plan = rewritten(Residual(), '"binarize"', '"pool-shortcut"', shape=(4, 3, size, size))
    assert counts(plan)["pool-shortcut"] == 1
    conv = graph.get_submodule("layer2.downsample.0")
    assert conv.stride == (1, 1)
    assert isinstance(graph.get_submodule("layer2.downsample.0_pool"), nn.AvgPool2d)


def test_every_shortcut_around_a_binary_convolution_gets_a_gate() -> None:
    graph, plan = rewritten(Residual(), '"binarize"', '"shortcut-per-conv"', '"gate-shortcut"')
    assert counts(plan)["gate-shortcut"] == 4
    gated = {str(n.target): input_of(n).name for n in graph.graph.nodes if is_call_of(graph, n, ChannelScale)}
    assert gated == {
        "layer1.conv1_gate": "relu",
        "layer1.conv2_gate": "layer1_relu",
        "layer2.conv1_gate": "layer2_downsample_1",
        "layer2.conv2_gate": "layer2_relu",
    }
    assert all(m.weight.tolist() == [1] * len(m.weight) for m in graph.modules() if isinstance(m, ChannelScale))


def test_a_gate_multiplies_the_shortcut_and_nothing_else() -> None:
    graph, _ = rewritten(Residual(), '"binarize"', '"gate-shortcut"')
    gate = graph.get_submodule("layer2.conv2_gate")
    with torch.no_grad():
        gate.weight.copy_(torch.arange(12.0))
    seen = {}
    for path in ("layer2.bn2", "layer2.downsample.1", "layer2.relu_1"):
        graph.get_submodule(path).register_forward_hook(lambda m, i, o, path=path: seen.update({path: (i[0], o)}))
    graph(torch.randn(2, 3, 8, 8))
    expected = seen["layer2.bn2"][1] + seen["layer2.downsample.1"][1] * torch.arange(12.0).reshape(12, 1, 1)
    torch.testing.assert_close(seen["layer2.relu_1"][0], expected)


def test_the_sum_of_two_binary_convolutions_has_no_shortcut_to_gate() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(self.a(x) + self.b(x))

    _, plan = rewritten(Twins(), '"binarize"', '"gate-shortcut"')
    assert counts(plan)["gate-shortcut"] == 0
    assert "a and b: both sides of their addition are binary" in plan.rewrites[1].refusals[0]


@pytest.mark.parametrize("name", REWRITES)
@pytest.mark.parametrize("module", [Residual, plain])
def test_find_reads_only_and_is_empty_afterwards(name: str, module: Callable[..., nn.Module]) -> None:
    options = {"replace-activation": 'to = "prelu"', "widen": "factor = 2"}.get(name, "")
    x = torch.randn(4, 3, 8, 8)
    row = f'{{ name = "{name}"{", " + options if options else ""} }}'
    recipe = parse_recipe(RECIPE.format(rewrites=row), where="test")
    graph = trace(module().eval(), (x,))
    plan = make_plan(recipe, layer_facts(graph), inputs=specs_of((1, 3, 8, 8)), model_bytes=0)
    (rewrite,) = build_rewrites(recipe)
    before = (graph.code, {k: v.clone() for k, v in graph.state_dict().items()})
    list(rewrite.find(graph, plan))
    graph.recompile()
    assert graph.code == before[0]
    assert all(torch.equal(v, before[1][k]) for k, v in graph.state_dict().items())
    run_rewrites(graph, plan, [rewrite], probe=(x,))
    assert not [s for s in rewrite.find(graph, plan) if isinstance(s, Site)]
    assert all(r.reason for r in rewrite.find(graph, plan) if isinstance(r, Refusal))


def test_the_runner_catches_a_rewrite_that_breaks_its_promise() -> None:
    class Wrong(Rewrite):
        name = "wrong"
        promise = EXACT
        done = False

        def find(self, graph: GraphModule, plan: Plan):  # type: ignore[no-untyped-def]
            if not self.done:
                yield Site(next(n for n in graph.graph.nodes if n.target == "fc"))

        def apply(self, graph: GraphModule, site: Site) -> None:
            self.done = True
            with torch.no_grad():
                graph.get_submodule("fc").weight.mul_(1.01)

    x = torch.randn(4, 3, 8, 8)
    graph = trace(Residual().eval(), (x,))
    recipe = parse_recipe(RECIPE.format(rewrites='"binarize"'), where="test")
    plan = make_plan(recipe, layer_facts(graph), inputs=specs_of((1, 3, 8, 8)), model_bytes=0)
    with pytest.raises(VerificationError, match="promises EXACT"):
        run_rewrites(graph, plan, [Wrong()], probe=(x,))


def test_an_exact_rewrite_may_round_by_the_largest_values() -> None:
    """A difference of large values rounds as they do, so 3e-4 beside 1e4 is none and beside 1 it is."""

    class Late(Rewrite):
        """Adds to one output of the last layer."""

        name, promise = "late", EXACT

        def __init__(self) -> None:
            self.done = False

        def find(self, graph: GraphModule, plan: Plan):  # type: ignore[no-untyped-def]
            if not self.done:
                yield Site(next(iter(graph.graph.nodes)))

        def apply(self, graph: GraphModule, site: Site) -> None:
            self.done = True
            graph.get_submodule("fc").bias.data[0] += 3e-4

    x = torch.randn(4, 3, 8, 8)
    recipe = parse_recipe(RECIPE.format(rewrites='"binarize"'), where="test")
    for large in (1.0, 1e4):
        net = Residual().eval()
        net.fc.weight.data.zero_()
        net.fc.bias.data = torch.tensor([0.0, large, large, large, large])
        graph = trace(net, (x,))
        plan = make_plan(recipe, layer_facts(graph), inputs=specs_of((1, 3, 8, 8)), model_bytes=0)
        with nullcontext() if large > 1 else pytest.raises(VerificationError, match="promises EXACT"):
            run_rewrites(graph, plan, [Late()], probe=(x,))


def test_the_runner_stops_a_rewrite_without_end() -> None:
    class Endless(Rewrite):
        name = "endless"
        promise = EXACT

        def find(self, graph: GraphModule, plan: Plan):  # type: ignore[no-untyped-def]
            yield Site(next(iter(graph.graph.nodes)))

        def apply(self, graph: GraphModule, site: Site) -> None:
            pass

    x = torch.randn(4, 3, 8, 8)
    graph = trace(Residual().eval(), (x,))
    recipe = parse_recipe(RECIPE.format(rewrites='"binarize"'), where="test")
    plan = make_plan(recipe, layer_facts(graph), inputs=specs_of((1, 3, 8, 8)), model_bytes=0)
    with pytest.raises(VerificationError, match="still finds work"):
        run_rewrites(graph, plan, [Endless()], probe=(x,))


def test_the_sign_of_a_relu_is_refused_by_name() -> None:
    graph, _ = rewritten(Residual(), '"binarize"')
    x = torch.randn(8, 3, 8, 8)
    with pytest.raises(RefusalError, match=r"Dead signs.*layer1\.conv1.*layer2\.conv2.*insert-batch-norm"):
        check_signs(graph, (x,), Checks())


def test_live_signs_pass_and_a_few_dead_channels_are_told() -> None:
    graph, _ = rewritten(Residual(), '"binarize"', '"remove-relu"', '"insert-batch-norm"')
    x = torch.randn(8, 3, 8, 8)
    state = {k: v.clone() for k, v in graph.state_dict().items()}
    assert check_signs(graph, (x,), Checks()) == ((), [])
    assert all(torch.equal(v, state[k]) for k, v in graph.state_dict().items()), "the check must not change the student"
    with torch.no_grad():
        graph.get_submodule("layer1.conv1_norm").bias[0] = 1000
    assert dead_shares(graph, (x,)) == {"layer1.conv1": 1 / 8}
    said, dead = check_signs(graph, (x,), Checks())
    assert "layer1.conv1" in said[0]
    assert dead == []
    with torch.no_grad():
        graph.get_submodule("layer1.conv1_norm").bias[:] = 1000
    assert check_signs(graph, (x,), Checks())[1] == ["layer1.conv1"]
    with pytest.raises(RefusalError, match=r"Dead signs.*layer1\.conv1"):
        check_signs(graph, (x,), Checks(dead_signs="refuse"))


def test_an_unknown_rewrite_names_its_place_and_the_nearest() -> None:
    recipe = parse_recipe(RECIPE.format(rewrites='"binarize", "reorder-pol"'), where="test")
    with pytest.raises(UsageError, match=r"rewrites\[1\].*did you mean 'reorder-pool'"):
        build_rewrites(recipe)
