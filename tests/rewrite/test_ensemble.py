"""An ensemble's graph: members below paths of their own, their vote, and members as graphs over the same modules."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import bnnconvert
from bnnconvert.errors import UsageError
from bnnconvert.graph import members_of
from bnnconvert.layers.vote import Vote
from bnnconvert.recipe import parse_recipe, recipe_text
from bnnconvert.train import finetune
from bnnconvert.values.plan import Plan
from tests.networks import Residual, randomise
from tests.rewrite.test_rewrites import counts, rewritten
from tests.train.toys import make_data


def ensemble(module: nn.Module, *, members: int = 3, vote: str = "soft") -> tuple[GraphModule, Plan]:
    return rewritten(module, '"binarize"', f'{{ name = "ensemble", members = {members}, vote = "{vote}" }}')


def test_votes_of_the_notes() -> None:
    one, two = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    soft, hard = Vote(2, kind="soft"), Vote(2, kind="hard")
    soft.set_weights([1.0, 1.0])
    assert soft(one, two).tolist() == [[0.5, 1.5]]
    hard.set_weights([0.7, 0.3])
    torch.testing.assert_close(hard(one, two), torch.tensor([[0.7, 0.3]]))


def test_votes_that_weigh_nothing_count_alike() -> None:
    vote = Vote(2, kind="soft")
    vote.set_weights([0.0, 0.0])
    assert [float(w) for w in vote.buffers()] == [0.5, 0.5]


def test_an_ensemble_of_equal_members_is_the_network() -> None:
    module = randomise(Residual())
    bare, _ = rewritten(module, '"binarize"')
    graph, plan = ensemble(module)
    assert counts(plan)["ensemble"] == 1
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(graph.eval()(x), bare.eval()(x))
    names = {name for name, _ in bare.named_parameters()}
    assert {name for name, _ in graph.named_parameters()} == {f"member{i}.{name}" for i in (1, 2, 3) for name in names}


def test_members_are_graphs_over_the_ensemble_s_own_modules() -> None:
    graph, _ = ensemble(randomise(Residual()))
    members = members_of(graph)
    assert len(members) == 3
    assert members_of(members[0]) == []
    assert members[1].get_submodule("layer1.conv1") is graph.get_submodule("member2.layer1.conv1")
    assert {name for name, _ in members[1].named_parameters()} == {name for name, _ in Residual().named_parameters()}
    with torch.no_grad():
        members[1].get_submodule("fc").bias.add_(3.0)
    x = torch.randn(4, 3, 8, 8)
    outputs = [member.eval()(x) for member in members]
    torch.testing.assert_close(outputs[1], outputs[0] + 3)
    torch.testing.assert_close(graph.eval()(x), sum(outputs) / 3)
    assert len(members_of(copy.deepcopy(graph))) == 3


def test_a_parameter_that_the_graph_reads_itself_moves_along() -> None:
    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.scale = nn.Linear(6, 8), nn.Linear(8, 8), nn.Parameter(torch.ones(8))
            self.c = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x)) * self.scale)

    graph, _ = rewritten(Direct(), '"binarize"', '{ name = "ensemble", members = 2 }', shape=(4, 6))
    assert {"member1.scale", "member2.scale"} < {name for name, _ in graph.named_parameters()}
    assert members_of(graph)[1](torch.randn(3, 6)).shape == (3, 2)


def test_the_plan_counts_the_members() -> None:
    _, plan = ensemble(Residual())
    _, bare = rewritten(Residual(), '"binarize"')
    assert plan.totals["binary_macs"] == 3 * bare.totals["binary_macs"]
    assert plan.totals["float_bytes"] == bare.totals["float_bytes"]
    assert plan.layer("member3.layer1.conv1") is not None


def test_a_model_that_gives_no_logits_is_refused() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.b(self.a(x))
            return self.c(x), x

    _, plan = rewritten(Two(), '"binarize"', '{ name = "ensemble", members = 2 }', shape=(4, 6))
    assert "no single tensor of logits" in plan.rewrites[1].refusals[0]


@pytest.mark.parametrize("vote", ["soft", "hard"])
def test_an_ensemble_is_exported_and_proven(vote: str, tmp_path: Path) -> None:
    text = recipe_text("benn").replace('vote = "soft"', f'vote = "{vote}"')
    torch.manual_seed(0)
    student = bnnconvert.convert(
        randomise(Residual()), parse_recipe(text, where="mine.toml"), input_shape=Residual.input_shape
    )
    for parameter in student.model.parameters():
        nn.init.normal_(parameter, std=0.3)
    student.model.get_submodule("vote").set_weights([0.5, 0.3, 0.2])
    report = bnnconvert.export(student, tmp_path / "m.packed.safetensors")
    assert report.predicted_bytes == report.tensor_bytes
    session, x = bnnconvert.Session(tmp_path / "m.packed.safetensors"), torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.from_numpy(session.run(x.numpy())), student.model.eval()(x), atol=1e-4, rtol=1e-3
        )
    if session.isa is not None:
        assert session.executor.is_native == (vote == "soft")


def test_training_members_without_an_ensemble_is_refused() -> None:
    text = recipe_text("benn").replace('    { name = "ensemble", members = 3, vote = "soft" },\n', "")
    with pytest.raises(UsageError, match=r"training\.ensemble"):
        parse_recipe(text, where="mine.toml")


def test_an_ensemble_may_be_trained_as_one_network() -> None:
    student = bnnconvert.convert(randomise(Residual()), "benn", input_shape=Residual.input_shape)
    before = [p.clone() for p in student.model.parameters()]
    training = student.recipe.training
    report = finetune(student.model, student.teacher, make_data(), training, epochs=1, max_steps=1, device="cpu")
    assert report.members == 1
    assert not any(torch.equal(p, q) for p, q in zip(student.model.parameters(), before, strict=True) if p.dim() > 1)
