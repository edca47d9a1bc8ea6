"""Every shipped recipe: parsed, named right, converted, trained two steps, exported and verified on small networks.

A recipe that says that it cannot be exported is refused there.
"""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import bnnconvert
from bnnconvert.errors import RefusalError, UsageError
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.pipeline import check_recipe, unpackable
from bnnconvert.recipe import load_recipe, parse_recipe, recipe_names, recipe_text
from bnnconvert.train import clip_latent
from bnnconvert.train.scratch import start_anew
from bnnconvert.values.data import Data, Images
from bnnconvert.values.inputs import specs_of
from bnnconvert.values.report import VerifyReport
from tests.networks import Functional, Residual, perceptron, plain, randomise
from tests.rarely import rarely


def toy_data(shape: tuple[int, ...], classes: int) -> Data:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, *shape), generator=generator, dtype=torch.uint8)
    labels = torch.arange(60) % classes
    channels = shape[0]
    return Data(
        Images(images, labels),
        Images(images, labels),
        None,
        specs_of((1, *shape)),
        "uint8",
        (0.5,) * channels,
        (0.3,) * channels,
        "toy",
    )


NETWORKS = {
    "residual": (Residual, (3, 8, 8), 5),
    "functional": (Functional, (1, 8, 8), 4),
    "plain": (plain, (3, 8, 8), 5),
    "perceptron": (perceptron, (1, 8, 8), 4),
}
PERCEPTRONS = {"bitwise"}
"""Recipes for multilayer perceptrons only."""


def networks_of(name: str) -> list[str]:
    """Networks that the recipe is for."""
    return ["perceptron"] if name in PERCEPTRONS else ["residual", "plain", "functional"]


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_names_itself_its_source_and_known_rows(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert "arXiv" in recipe.source
    check_recipe(recipe)


@pytest.mark.parametrize(
    ("name", "network"),
    [
        *((name, network) for name in recipe_names() for network in networks_of(name)[:2]),
        *rarely(*((name, network) for name in recipe_names() for network in networks_of(name)[2:])),
    ],
)
def test_recipe_goes_the_whole_way(name: str, network: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, shape, classes = NETWORKS[network]
    data = toy_data(shape, classes)
    student = bnnconvert.convert(randomise(build()), name, data=data)
    binary = [m for m in student.model.modules() if isinstance(m, BinaryLayer)]
    assert binary
    before = {k: v.clone() for k, v in student.model.state_dict().items()}
    stages = len(student.recipe.training.stages)
    precision = "bf16" if network == "plain" else "no"
    # two steps each
    report = bnnconvert.finetune(student, data, epochs=stages, batch_size=28, mixed_precision=precision)
    assert report.steps == 2 * stages * report.members
    moved = [k for k, v in student.model.state_dict().items() if not torch.equal(v, before[k])]
    assert any(k.endswith("weight") for k in moved)
    if unpackable(student.recipe):
        with pytest.raises(RefusalError, match="cannot be exported") as refusal:
            bnnconvert.export(student, tmp_path / "m.packed.safetensors")
        assert str(refusal.value).split(":")[0] in {p.facts.path for p in student.plan.layers}
        return
    exported = bnnconvert.export(student, tmp_path / "m.packed.safetensors")
    assert exported.predicted_bytes == exported.tensor_bytes
    for layer in exported.layers:
        assert layer.weight_bytes * 8 >= layer.binary_weights
    compared = bnnconvert.verify(tmp_path / "m.packed.safetensors", against=student, data=data)
    assert isinstance(compared, VerifyReport)
    assert compared.passed
    assert compared.agreement == 1.0


@pytest.mark.parametrize("name", recipe_names())
def test_any_recipe_starts_from_scratch_where_it_is_asked_to(name: str) -> None:
    build, shape, _ = NETWORKS[networks_of(name)[0]]
    student = bnnconvert.convert(randomise(build()), name, input_shape=(1, *shape)).model
    weights = [m.weight for m in student.modules() if isinstance(m, BinaryLayer | nn.Conv2d | nn.Linear)]
    before = [weight.detach().clone() for weight in weights]
    start_anew(student)
    assert not any(torch.equal(old, new) for old, new in zip(before, weights, strict=True))
    assert student.train()(torch.randn(2, *shape)).isfinite().all()


@pytest.mark.parametrize("name", recipe_names())
def test_converted_student_trains_in_an_ordinary_loop(name: str) -> None:
    torch.manual_seed(0)
    build, shape, classes = NETWORKS[networks_of(name)[0]]
    student = bnnconvert.convert(randomise(build()), name, input_shape=(1, *shape)).model.train()
    optimizer = torch.optim.Adam(student.parameters(), 1e-3)
    x, y = torch.randn(16, *shape), torch.arange(16) % classes
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(student(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clip_latent(student)
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's compiler, of its own
@pytest.mark.parametrize("name", recipe_names())
def test_a_student_compiles_as_one_graph(name: str) -> None:
    torch.manual_seed(0)
    build, shape, _ = NETWORKS[networks_of(name)[0]]
    student = bnnconvert.convert(randomise(build()), name, input_shape=(1, *shape)).model.train()
    x = torch.randn(4, *shape)
    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(student), backend="eager", fullgraph=True)
    made = []
    for step in (compiled, student):
        torch.manual_seed(1)  # for dropout
        made.append(step(x))
    torch.testing.assert_close(*made)


def test_what_stays_float_is_what_the_method_says() -> None:
    def kept(name: str) -> set[str]:
        plan = bnnconvert.convert(randomise(Residual()), name).plan
        return {p.facts.path for p in plan.layers if p.decision == "float" and not p.is_copy}

    ends_too = {"bnn", "binaryconnect", "lab", "lab2"}
    for name in ends_too:
        assert kept(name) == {"layer2.downsample.0"}
    assert kept("fqn") == set()
    assert kept("groupnet") == {"conv1", "fc"}
    assert kept("benn") == {"member1.conv1", "member1.fc", "member1.layer2.downsample.0"}
    for name in set(recipe_names()) - ends_too - {"fqn", "groupnet", "benn"} - PERCEPTRONS:
        assert kept(name) == {"conv1", "fc", "layer2.downsample.0"}


def test_bnn_has_a_weight_only_first_layer() -> None:
    plan = bnnconvert.convert(randomise(Residual()), "bnn").plan
    first = plan.layer("conv1")
    assert first is not None
    assert first.decision == "weight-only"


def test_bitwise_is_bits_from_the_pixels_to_the_logits_and_refuses_what_it_is_not_for() -> None:
    student = bnnconvert.convert(randomise(perceptron()), "bitwise", input_shape=(1, 1, 8, 8))
    assert {p.decision for p in student.plan.layers} == {"binary"}
    left = {type(m) for m in student.model.modules() if not any(True for _ in m.children())}
    assert not any(kind in left for kind in (nn.ReLU, nn.BatchNorm1d))
    with torch.no_grad():
        logits = student.model.eval()(torch.randn(4, 1, 8, 8))
    assert torch.equal(logits, logits.round())
    with pytest.raises(RefusalError, match="Dead signs: the binary input of fc"):
        bnnconvert.convert(randomise(Residual()), "bitwise", input_shape=(1, 3, 8, 8))


def test_layers_without_a_scale_get_a_batch_norm_also_where_their_input_stays_float() -> None:
    student = bnnconvert.convert(randomise(Functional()), "binaryconnect").model
    added = {name for name, _ in student.named_modules() if "norm" in name}
    assert added == {"conv3_output_norm", "fc1_output_norm", "fc2_output_norm"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("[training]", "[trainin]"), "unknown key 'trainin'; did you mean 'training'"),
        (('position = "first"', 'positon = "first"'), r"layers\[0\].match.positon'; did you mean 'position'"),
        (('position = "first"', 'position = "frist"'), "layers[0].match.position"),
        (('keep = "first layer: reads the real-valued input"', 'keep = ""'), "needs a reason"),
        (('name = "xnor"', "name = 3"), "name: input should be a valid string"),
        (("[training]", "[training]\nepochs = 0"), "training.epochs"),
        (("[training]", "[training]\nbatch_norm_momentum = 2"), "batch_norm_momentum: it must be a number above 0 and"),
        (("[training]", "[training]\nstages = [{ share = 0.5 }]"), "add up to 0.5"),
        (("[training]", "[training]\nstages = [{ weights = false }]"), "last stage must have binary"),
        (("rewrites = [", "rewrites = [["), "not valid TOML"),
    ],
)
def test_a_wrong_recipe_names_the_key(change: tuple[str, str], words: str) -> None:
    text = recipe_text("xnor")
    assert change[0] in text
    with pytest.raises(UsageError) as error:
        parse_recipe(text.replace(*change), where="mine.toml")
    assert str(error.value).startswith("mine.toml")
    assert words.replace("\\", "") in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('"binarize"', '"binarise"'), "did you mean 'binarize'"),
        (('name = "adam"', 'name = "adan"'), "did you mean 'adam'"),
        (('name = "distill"', 'name = "distil"'), "did you mean 'distill'"),
        (('name = "scaled-sign"', 'name = "scaledsign"'), "did you mean 'scaled-sign'"),
        (('name = "sign", estimator', 'name = "sgn", estimator'), "did you mean 'sign'"),
    ],
)
def test_a_wrong_name_in_a_table_is_found_before_anything_runs(change: tuple[str, str], words: str) -> None:
    text = recipe_text("xnor")
    assert change[0] in text
    with pytest.raises(UsageError) as error:
        check_recipe(parse_recipe(text.replace(*change), where="mine.toml"))
    assert words in str(error.value)


def test_unknown_recipe_and_near_miss() -> None:
    with pytest.raises(UsageError, match="did you mean 'xnor'"):
        load_recipe("xnr")
    with pytest.raises(UsageError, match=r"nowhere\.toml: cannot be read"):
        load_recipe("nowhere.toml")
