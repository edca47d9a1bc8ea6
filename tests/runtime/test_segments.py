"""What runs in the engine and what does not: no wrong result, and no error where the portable executor has none."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bnnconvert.bits import pack_rows
from bnnconvert.runtime import native
from bnnconvert.runtime.executor import Executor
from bnnconvert.runtime.segments import parts_of
from bnnconvert.values.program import Batch, Constant, Node, Output, Program, Value, ValueSpec
from tests.programs import Case, program_of

pytestmark = pytest.mark.skipif(native.library() is None, reason="installed without the native engine")
ISA = native.instruction_sets()[0] if native.library() is not None else ""


def executor(case: Case) -> Executor:
    return Executor(case.program, case.tensors, "case", threads=1, isa=ISA)


def outputs(case: Case, isa: str | None) -> list[np.ndarray]:
    runs = Executor(case.program, case.tensors, "case", threads=1, isa=isa)
    values = runs.run([case.x])
    return [values[name] for name in case.program.output.values()]


def spec(name: str, *shape: int, samples: int = 1, dtype: str = "float32") -> ValueSpec:
    return ValueSpec(name=name, dtype=dtype, shape=(Batch(batch=samples), *shape))


def test_values_with_other_numbers_of_samples_are_parts_of_samples() -> None:
    nodes = (
        Node(
            op="aten.repeat.default",
            arguments={"self": Value(value="x"), "repeats": (7, 1)},
            outputs=(spec("many", 4, samples=7),),
        ),
        Node(op="aten.relu.default", arguments={"self": Value(value="many")}, outputs=(spec("a", 4, samples=7),)),
        Node(op="aten.abs.default", arguments={"self": Value(value="x")}, outputs=(spec("b", 4),)),
    )
    items = tuple(Output(kind="value", value=name) for name in ("a", "b"))
    program = Program(inputs=(spec("x", 4),), nodes=nodes, output=Output(kind="tuple", items=items))
    case = Case(program, {}, np.float32([[1, -2, 3, -4], [5, 6, -7, 8]]))
    for ours, theirs in zip(outputs(case, ISA), outputs(case, None), strict=True):
        assert np.array_equal(ours, theirs)
    assert executor(case).reasons == {0: "an order of numbers mixes the samples"}


def test_a_scale_on_the_last_of_three_axes_stays_outside() -> None:
    arguments = {"acc": Value(value="x"), "scale": Constant(tensor="s"), "bias": None, "axis": -1}
    node = Node(op="bnnconvert.affine", arguments=arguments, outputs=(spec("y", 5, 5),))
    program = Program(inputs=(spec("x", 5, 5),), nodes=(node,), output=Output(kind="value", value="y"))
    case = Case(program, {"s": np.float32([[1, 2, 3, 4, 5]])}, np.ones((2, 5, 5), np.float32))
    assert np.array_equal(outputs(case, ISA)[0], outputs(case, None)[0])
    assert "another axis" in executor(case).reasons[0]


def _heads(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (4, 5)).transpose(1, 2)


MASK = torch.ones(9, 9).tril().log()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.scaled_dot_product_attention(*[_heads(F.relu(x))] * 3, attn_mask=MASK).transpose(1, 2).flatten(2),
        lambda x: F.scaled_dot_product_attention(*[_heads(F.relu(x))] * 3, is_causal=True).transpose(1, 2).flatten(2),
        lambda x: F.scaled_dot_product_attention(*[_heads(F.relu(x))[:1].expand_as(_heads(x))] * 3).flatten(2),
        lambda x: F.scaled_dot_product_attention(*[F.relu(x).unflatten(1, (3, 3))] * 3).flatten(1, 2),
        lambda x: F.relu(_heads(F.relu(x))) + 1,
        lambda x: F.relu(F.layer_norm(x, (9, 20))),
        lambda x: F.relu(x) + F.relu(x.transpose(1, 2)).transpose(1, 2),
        lambda x: F.max_pool1d(F.layer_norm(x, (20,)), 2) * 2,
        lambda x: torch.cat([F.layer_norm(x, (20,)), F.relu(x)[:, :1]], 1) * 2,
    ],
)
def test_orders_that_the_engine_does_not_know_stay_outside(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    case = program_of(function, torch.randn(2, 9, 20))
    np.testing.assert_allclose(outputs(case, ISA)[0], outputs(case, None)[0], rtol=1e-5, atol=1e-6)


def test_heads_that_lie_in_another_order_are_moved_into_it() -> None:
    case = program_of(
        lambda x: F.scaled_dot_product_attention(*[F.relu(x).unflatten(-1, (5, 4)).permute(0, 3, 1, 2)] * 3),
        torch.randn(2, 9, 20),
    )
    assert executor(case).is_native
    np.testing.assert_allclose(outputs(case, ISA)[0], outputs(case, None)[0], rtol=1e-5, atol=1e-6)


def test_a_factor_per_pixel_joins_the_chain() -> None:
    case = program_of(lambda x: x * F.relu(x[:, :1]), torch.randn(2, 1, 3, 3))
    wide = program_of(lambda x, w: F.conv2d(x, w) * torch.sigmoid(x), torch.randn(2, 1, 5, 4), torch.randn(20, 1, 1, 1))
    assert executor(wide).is_native
    np.testing.assert_allclose(outputs(wide, ISA)[0], outputs(wide, None)[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs(case, ISA)[0], outputs(case, None)[0], rtol=1e-5, atol=1e-6)


def test_a_long_chain_runs() -> None:
    def long(x: torch.Tensor) -> torch.Tensor:
        for _ in range(100):
            x = torch.tanh(x) * 1.5
        return x

    case = program_of(long, torch.randn(2, 5, 3, 3))
    assert executor(case).is_native
    np.testing.assert_allclose(outputs(case, ISA)[0], outputs(case, None)[0], rtol=1e-4, atol=1e-5)


def test_a_part_that_the_engine_refuses_runs_node_by_node(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise native.RefusedPlan("no such thing")

    monkeypatch.setattr("bnnconvert.runtime.executor.Engine", refuse)
    case = program_of(lambda x: F.relu(x) + 1, torch.randn(2, 5, 3, 3))
    runs = executor(case)
    assert set(runs.reasons.values()) == {"no such thing"}
    assert not runs.is_native
    assert np.array_equal(outputs(case, ISA)[0], outputs(case, None)[0])


def test_arguments_that_make_no_sense_are_left_to_the_portable_executor() -> None:
    arguments = {"self": Value(value="x"), "kernel_size": (2, 2), "stride": (2**70, 1)}
    node = Node(op="aten.max_pool2d.default", arguments=arguments, outputs=(spec("y", 3, 1, 3),))
    program = Program(inputs=(spec("x", 3, 4, 4),), nodes=(node,), output=Output(kind="value", value="y"))
    _, reasons = parts_of(program, {})
    assert "unusual arguments" in reasons[0]


@pytest.mark.parametrize("isa", native.instruction_sets())
@pytest.mark.parametrize("falls", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("channels", [16, 20, 64])
def test_a_max_pool_over_accumulators_becomes_a_pool_of_bits(isa: str, falls: float, channels: int) -> None:
    rng = np.random.default_rng(channels)
    k = 9 * 8
    tensors = {
        "t": np.zeros((1, 1, 1), np.float32),
        "s": np.zeros((1, 1), np.bool_),
        "w": pack_rows(rng.random((1, channels, k)) < 0.5),
        "limits": rng.integers(-9, 10, (1, channels, 1)).astype(np.int32),
        "falls": rng.random((1, channels)) < falls,
        "w2": pack_rows(rng.random((1, 7, channels)) < 0.5),
        "one": np.ones((1, 7), np.float32),
    }
    lay = {"stride": (1, 1), "dilation": (1, 1), "groups": 1, "pad_bit": "zero"}

    def encode(x: str, t: str, s: str, made: ValueSpec) -> Node:
        arguments = {"x": Value(value=x), "thresholds": Constant(tensor=t), "start": Constant(tensor=s)}
        return Node(op="bnnconvert.encode", arguments=arguments, outputs=(made,))

    def dot(bits: str, w: str, c: int, kernel: int, made: ValueSpec) -> Node:
        where = {"in_channels": c, "kernel": (kernel, kernel), "padding": (kernel // 2, kernel // 2), **lay}
        arguments = {"bits": Value(value=bits), "weight": Constant(tensor=w), **where}
        return Node(op="bnnconvert.binary_conv2d", arguments=arguments, outputs=(made,))

    pool = {"self": Value(value="acc"), "kernel_size": (3, 3), "stride": (2, 2), "padding": (1, 1)}
    nodes = (
        encode("x", "t", "s", spec("bits", 8, 9, 7, dtype="bool")),
        dot("bits", "w", 8, 3, spec("acc", channels, 9, 7, dtype="int32")),
        Node(op="aten.max_pool2d.default", arguments=pool, outputs=(spec("most", channels, 5, 4, dtype="int32"),)),
        encode("most", "limits", "falls", spec("more", channels, 5, 4, dtype="bool")),
        dot("more", "w2", channels, 1, spec("acc2", 7, 5, 4, dtype="int32")),
        Node(
            op="bnnconvert.affine",
            arguments={"acc": Value(value="acc2"), "scale": Constant(tensor="one"), "bias": None, "axis": 1},
            outputs=(spec("y", 7, 5, 4),),
        ),
    )
    program = Program(inputs=(spec("x", 8, 9, 7),), nodes=nodes, output=Output(kind="value", value="y"))
    case = Case(program, tensors, rng.standard_normal((3, 8, 9, 7), np.float32))
    runs = Executor(program, tensors, "case", threads=2, isa=isa)
    assert "pool bits" in {step.kernel for engine in runs.engines for step in engine.steps()}
    assert np.array_equal(runs.run([case.x])["y"], outputs(case, None)[0])
