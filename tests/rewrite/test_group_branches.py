"""Branches of residual blocks: which blocks, what the copies share, merges, gates and dilations, plan and export."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import bnnconvert
from bnnconvert.errors import UsageError
from bnnconvert.graph import is_call_of, module_of
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.layers.branches import BranchMerge, SoftGate
from bnnconvert.layers.conv2d import BinaryConv2d
from bnnconvert.recipe import parse_recipe, recipe_text
from bnnconvert.rewrite.blocks import residual_blocks
from bnnconvert.trace.tracer import trace
from bnnconvert.values.plan import Plan
from tests.networks import Block, Residual, plain, randomise
from tests.rewrite.test_rewrites import counts, rewritten


def branched(module: nn.Module, **options: object) -> tuple[GraphModule, Plan]:
    written = {name: str(value).lower() if isinstance(value, bool) else repr(value) for name, value in options.items()}
    row = ", ".join(['name = "group-branches"', *(f"{k} = {v}" for k, v in written.items())])
    return rewritten(module, '"binarize"', f"{{ {row} }}")


def test_blocks_lie_between_a_value_and_the_addition_that_it_reaches_by_two_ways() -> None:
    graph = trace(Residual().eval(), (torch.randn(2, 3, 8, 8),))
    one, two = residual_blocks(graph)
    assert one.entry.target == "relu"
    assert [n.name for n in one.nodes] == [
        "layer1_conv1",
        "layer1_bn1",
        "layer1_relu",
        "layer1_conv2",
        "layer1_bn2",
        "add",
        "layer1_relu_1",
    ]
    assert two.entry is one.exit
    assert {str(n.target) for n in two.nodes} > {"layer2.downsample.0", "layer2.downsample.1"}
    assert not list(residual_blocks(trace(plain().eval(), (torch.randn(2, 3, 8, 8),))))


def test_of_blocks_inside_each_other_the_inner_one_is_taken() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b, self.head = (nn.Conv2d(i, 4, 1) for i in (3, 4, 4, 4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            y = self.a(x)
            return self.head(x + (y + self.b(y)))

    (block,) = residual_blocks(trace(Nested().eval(), (torch.randn(2, 3, 4, 4),)))
    assert block.entry.target == "a"


def test_each_block_becomes_branches_of_its_own_layers() -> None:
    graph, plan = branched(Residual(), branches=3)
    assert counts(plan)["group-branches"] == 2
    merges = [n for n in graph.graph.nodes if is_call_of(graph, n, BranchMerge)]
    assert [len(n.args) for n in merges] == [3, 3]
    binary = {path for path, m in graph.named_modules() if isinstance(m, BinaryLayer)}
    assert len(binary) == 3 * 4
    assert {"layer1.conv1", "layer1.conv1_branch2", "layer1.conv1_branch3"} < binary
    for node in graph.graph.nodes:
        if str(node.target).startswith("layer2.conv1"):
            assert node.all_input_nodes == [merges[0]]
    assert "layer2.downsample.0_branch3" in dict(graph.named_modules())


def test_branches_part_around_the_weights_of_the_float_layer() -> None:
    module = Residual()
    graph, _ = branched(module, branches=4)
    weights = [graph.get_submodule(f"layer1.conv1{end}").weight for end in ("", *(f"_branch{i}" for i in (2, 3, 4)))]
    torch.testing.assert_close(sum(weights) / 4, module.layer1.conv1.weight)
    assert all((weights[0] - other).abs().min() > 0 for other in weights[1:])


def test_equal_branches_without_gates_are_the_plain_block() -> None:
    module = randomise(Residual())
    bare, _ = rewritten(module, '"binarize"')
    graph, _ = branched(module, branches=3, noise=1e-30)
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(graph.eval()(x), bare.eval()(x))


@pytest.mark.parametrize("learned", [False, True])
def test_the_mean_of_equal_branches_is_each_of_them(learned: bool) -> None:
    merge, x = BranchMerge(4, learned=learned), torch.randn(2, 3)
    torch.testing.assert_close(merge(x, x, x, x), x)


def test_learned_scales_weigh_the_branches() -> None:
    merge = BranchMerge(2, learned=True)
    with torch.no_grad():
        merge.scales[0].fill_(3.0)
    a, b = torch.randn(2, 5), torch.randn(2, 5)
    y = merge(a, b)
    torch.testing.assert_close(y, 3 * a + b / 2)
    y.sum().backward()
    torch.testing.assert_close(merge.scales[1].grad, b.sum().reshape(1))


def test_a_soft_gate_begins_half_and_half() -> None:
    gate, own, merged = SoftGate(), torch.randn(2, 3), torch.randn(2, 3)
    torch.testing.assert_close(gate(own, merged), (own + merged) / 2)
    with torch.no_grad():
        gate.theta.fill_(2.0)
    share = torch.tensor(2.0).sigmoid()
    torch.testing.assert_close(gate(own, merged), share * own + (1 - share) * merged)
    assert torch.equal(gate.deployed()(own, merged), gate(own, merged))


def test_gates_stand_between_blocks_and_not_before_the_first() -> None:
    graph, _ = branched(Residual(), branches=2, gates=True)
    gates = [n for n in graph.graph.nodes if is_call_of(graph, n, SoftGate)]
    assert [n.target for n in gates] == ["layer2.downsample.0_gate"] * 2
    merge = next(n for n in graph.graph.nodes if is_call_of(graph, n, BranchMerge))
    assert [n.args for n in gates] == [(own, merge) for own in merge.args]
    readers = {str(user.target) for user in gates[1].users}
    assert readers == {"layer2.conv1_branch2", "layer2.downsample.0_branch2"}


def test_the_branches_of_the_last_blocks_see_wider_at_the_same_size() -> None:
    graph, _ = branched(Residual(), branches=3, dilated_blocks=1)
    geometry = {path: (m.padding, m.dilation) for path, m in graph.named_modules() if isinstance(m, BinaryConv2d)}
    assert geometry["layer1.conv2_branch3"] == ((1, 1), (1, 1))
    assert [geometry[f"layer2.conv2{end}"] for end in ("", "_branch2", "_branch3")] == [
        ((i, i), (i, i)) for i in (1, 2, 3)
    ]
    assert graph(torch.randn(2, 3, 8, 8)).shape == (2, 5)


def test_the_plan_counts_the_branches() -> None:
    _, plan = branched(Residual(), branches=3)
    _, bare = rewritten(Residual(), '"binarize"')
    assert plan.totals["binary_layers"] == 3 * bare.totals["binary_layers"]
    assert plan.totals["binary_macs"] == 3 * bare.totals["binary_macs"]
    assert plan.totals["float_bytes"] == bare.totals["float_bytes"]
    layer = plan.layer("layer1.conv2_branch3")
    assert layer is not None
    assert layer.reason == "a branch of layer1.conv2"
    paths = [p.facts.path for p in plan.layers]
    assert paths.index("layer1.conv2_branch3") == paths.index("layer1.conv2") + 2


def test_a_block_with_a_shared_layer_is_refused() -> None:
    class Shared(Block):
        def forward(self, x: Tensor) -> Tensor:
            return self.bn1(self.conv2(self.bn1(self.conv1(x)))) + x

    module = nn.Sequential(nn.Conv2d(3, 4, 1), Shared(4, 4), nn.Flatten(), nn.Linear(256, 2))
    graph, plan = branched(module)
    assert counts(plan)["group-branches"] == 0
    assert plan.rewrites[1].refusals == ("1.bn1: its block cannot be branched, as it is called more than once",)
    assert not [m for m in graph.modules() if isinstance(m, BranchMerge)]


def test_one_branch_is_no_group() -> None:
    with pytest.raises(UsageError, match="option 'branches' is 1"):
        branched(Residual(), branches=1)


@pytest.mark.parametrize("merge", ["mean", "learned"])
def test_a_branched_student_is_exported_and_proven(merge: str, tmp_path: Path) -> None:
    text = recipe_text("groupnet").replace('merge = "mean"', f'merge = "{merge}", dilated_blocks = 1')
    torch.manual_seed(0)
    student = bnnconvert.convert(
        randomise(Residual()), parse_recipe(text, where="mine.toml"), input_shape=Residual.input_shape
    )
    for module in student.model.modules():
        if isinstance(module, BranchMerge | SoftGate):
            for parameter in module.parameters():
                nn.init.normal_(parameter)
    report = bnnconvert.export(student, tmp_path / "m.packed.safetensors")
    assert report.predicted_bytes == report.tensor_bytes
    session = bnnconvert.Session(tmp_path / "m.packed.safetensors")
    if session.isa is not None:
        assert session.executor.is_native
    x = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.from_numpy(session.run(x.numpy())), student.model.eval()(x), atol=1e-4, rtol=1e-3
        )


def test_a_copy_of_the_graph_keeps_its_branches_apart() -> None:
    graph, _ = branched(Residual(), branches=2)
    twin = copy.deepcopy(graph)
    node = next(n for n in twin.graph.nodes if n.target == "layer1.conv1_branch2")
    assert module_of(twin, node) is not module_of(twin, next(n for n in twin.graph.nodes if n.target == "layer1.conv1"))
