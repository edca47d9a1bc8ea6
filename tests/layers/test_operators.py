"""The packed operators: torch reference against plain float64 arithmetic, and numpy executor against torch, exactly."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from bnnconvert.bits import pack_rows
from bnnconvert.layers import operators
from bnnconvert.runtime import packed

INT_MAX = 2**31 - 1


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def packed_rows(filters: torch.Tensor) -> torch.Tensor:
    """(M, O, C, kh, kw) ±1 to packed rows."""
    return torch.from_numpy(pack_rows((filters.permute(0, 1, 3, 4, 2).flatten(2) > 0).numpy()))


@st.composite
def convolutions(draw):
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    per_group = draw(st.sampled_from([1, 2, 3, 7, 8, 9, 16, 31, 32, 33, 64, 65, 130]))
    settings = {
        "in_channels": groups * per_group,
        "kernel": [draw(st.integers(1, 4)), draw(st.integers(1, 4))],
        "stride": [draw(st.integers(1, 3)), draw(st.integers(1, 3))],
        "padding": [draw(st.integers(0, 4)), draw(st.integers(0, 4))],
        "dilation": [draw(st.integers(1, 3)), draw(st.integers(1, 3))],
        "groups": groups,
        "pad_bit": draw(st.sampled_from(["zero", "one"])),
    }
    size = [draw(st.integers(1, 7)), draw(st.integers(1, 7))]
    sizes = [
        operators.out_size(size[i], *(settings[n][i] for n in ("kernel", "stride", "padding", "dilation")))
        for i in (0, 1)
    ]
    assume(min(sizes) > 0)
    planes = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    out = groups * draw(st.integers(1, 3))
    shape = (draw(st.integers(1, 3)), planes[0] * groups * per_group, *size)
    return settings, shape, planes, out, draw(st.integers(0, 2**31))


@given(convolutions())
@settings(max_examples=60, deadline=None)
def test_convolution_is_exact_in_torch_and_numpy(case):
    settings, shape, (_, weight_planes), out, seed = case
    generator = random(seed)
    bits = torch.rand(shape, generator=generator) < 0.5
    kernel, channels, groups = settings["kernel"], settings["in_channels"], settings["groups"]
    filters = (torch.rand((weight_planes, out, channels // groups, *kernel), generator=generator) < 0.5) * 2.0 - 1
    pm1 = bits.double() * 2 - 1
    ph, pw = settings["padding"]
    padded = F.pad(pm1, (pw, pw, ph, ph), value=1.0 if settings["pad_bit"] == "one" else 0.0)
    expected = torch.cat(
        [
            F.conv2d(a, b.double(), None, settings["stride"], 0, settings["dilation"], groups)
            for a in padded.split(channels, 1)
            for b in filters
        ],
        1,
    ).to(torch.int32)
    weight = packed_rows(filters)
    assert torch.equal(operators.binary_conv2d(bits, weight, **settings), expected)
    assert np.array_equal(packed.BinaryConv2d(weight.numpy(), **settings)(bits.numpy()), expected.numpy())


def test_rows_longer_than_sixteen_bits_count():
    bits, filters = torch.ones(1, 7300, 3, 3, dtype=torch.bool), -torch.ones(1, 1, 7300, 3, 3)
    settings = {"in_channels": 7300, "kernel": [3, 3], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1]}
    acc = packed.BinaryConv2d(packed_rows(filters).numpy(), **settings, groups=1, pad_bit="zero")(bits.numpy())
    assert acc[0, 0].tolist() == [
        [-4 * 7300, -6 * 7300, -4 * 7300],
        [-6 * 7300, -9 * 7300, -6 * 7300],
        [-4 * 7300, -6 * 7300, -4 * 7300],
    ]


@given(
    st.sampled_from([1, 7, 8, 9, 63, 64, 65, 200]),
    st.integers(1, 5),
    st.integers(1, 2),
    st.integers(1, 2),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_product_is_exact_in_torch_and_numpy(features, out, planes, weight_planes, sequence):
    generator = random(features * 100 + out)
    middle = (3,) if sequence else ()
    bits = torch.rand((2, *middle, planes * features), generator=generator) < 0.5
    rows = (torch.rand((weight_planes, out, features), generator=generator) < 0.5) * 2.0 - 1
    weight = torch.from_numpy(pack_rows((rows > 0).numpy()))
    pm1 = bits.double() * 2 - 1
    expected = torch.cat([p @ r.double().T for p in pm1.split(features, -1) for r in rows], -1).to(torch.int32)
    assert torch.equal(operators.binary_linear(bits, weight, features), expected)
    assert np.array_equal(packed.BinaryLinear(weight.numpy(), in_features=features)(bits.numpy()), expected.numpy())


SPECIAL = [0.0, -0.0, math.nan, math.inf, -math.inf, 1e-45, -1e-45, 0.5, -0.5, 3.0]


def count_bits(x: float, thresholds: list[float], start: bool) -> bool:
    """The definition, one element at a time."""
    return start ^ (sum(t <= x for t in thresholds if t != math.inf) % 2 == 1)


@given(
    st.integers(1, 3).flatmap(
        lambda n: st.lists(
            st.lists(st.sampled_from([-math.inf, -0.5, 0.0, 0.5, math.inf]), min_size=n, max_size=n),
            min_size=4,
            max_size=4,
        )
    ),
    st.lists(st.booleans(), min_size=4, max_size=4),
)
@settings(deadline=None)
def test_encode_counts_thresholds_at_special_values(rows, start):
    thresholds = torch.tensor([sorted(row) for row in rows]).reshape(2, 2, -1)
    starts = torch.tensor(start).reshape(2, 2)
    x = torch.tensor(SPECIAL)[:, None].expand(-1, 2).contiguous()
    expected = torch.tensor(
        [
            [count_bits(v, thresholds[p, c].tolist(), bool(starts[p, c])) for p in (0, 1) for c in (0, 1)]
            for v in SPECIAL
        ]
    )
    assert torch.equal(operators.encode(x, thresholds, starts), expected)
    assert np.array_equal(packed.encode(x.numpy(), thresholds.numpy(), starts.numpy()), expected.numpy())


def test_encode_of_sign_is_the_convention():
    bits = operators.encode(
        torch.tensor([[0.0, -0.0, math.nan, -1e-45]]), torch.zeros(1, 1, 1), torch.zeros(1, 1, dtype=torch.bool)
    )
    assert bits.tolist() == [[True, True, False, False]]


def test_integer_padding_is_never_counted():
    thresholds = torch.tensor([[[-2, 3], [1, INT_MAX]]], dtype=torch.int32)
    start = torch.zeros(1, 2, dtype=torch.bool)
    x = torch.tensor([[-3, 0], [-2, 1], [3, INT_MAX - 1]], dtype=torch.int32)
    expected = [[False, False], [True, True], [False, True]]
    assert operators.encode(x, thresholds, start).tolist() == expected
    assert packed.encode(x.numpy(), thresholds.numpy(), start.numpy()).tolist() == expected


@given(st.integers(1, 4), st.booleans(), st.sampled_from([1, -1]), st.integers(0, 1000))
@settings(deadline=None)
def test_affine_rounds_alike(planes, with_bias, axis, seed):
    generator = random(seed)
    shape = (2, planes * 3, 4, 5) if axis == 1 else (2, 4, planes * 3)
    acc = torch.randint(-5000, 5000, shape, generator=generator, dtype=torch.int32)
    scale = torch.randn(planes, 3, generator=generator)
    bias = torch.randn(3, generator=generator) if with_bias else None
    y = operators.affine(acc, scale, bias, axis)
    n = packed.affine(acc.numpy(), scale.numpy(), None if bias is None else bias.numpy(), axis=axis)
    assert np.array_equal(y.numpy(), n)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("kind", [None, torch.float32, torch.bool])
def test_attention_by_signs_is_what_its_formula_says(kind: torch.dtype | None, both: bool) -> None:
    q, k, v = torch.randn(2, 3, 5, 20), torch.randn(2, 3, 7, 20), torch.randn(2, 3, 7, 6)
    q[0, 0, 0, 0], k[0, 0, 0, 1], v[0, 0, 0, 0] = -0.0, 0.0, 0.0  # +1, both of them
    added = torch.zeros(5, 7)
    added[0], added[1, 2:] = -math.inf if both else 1.0, -math.inf
    mask = {None: None, torch.float32: added, torch.bool: added == 0}[kind]
    if kind == torch.bool and not both:
        mask[0] = True
        added[0] = 0
    y = operators.binary_attention(q, k, v, mask, 0.3, both)

    one = torch.ones(())
    signs = [torch.where(x >= 0, one, -one).double() for x in (q, k, v)]
    products = torch.einsum("nhid,nhjd->nhij", signs[0], signs[1])
    score = products * q.double().abs().mean(-1)[..., None] * k.double().abs().mean(-1)[..., None, :] * 0.3
    score = score if mask is None else score + added
    if both:
        chosen = (score >= 0).double()
        expected = chosen @ signs[2] / chosen.sum(-1, keepdim=True).clamp(min=1)
        expected = expected * v.double().abs().mean((-2, -1), keepdim=True)
        assert mask is None or not y[:, :, 0].any()
    else:
        expected = score.softmax(-1) @ v.double()
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-6)
    arrays = (x if x is None else x.numpy() for x in (q, k, v, mask))
    n = packed.binary_attention(*arrays, scale=0.3, both=both)
    assert n.dtype == np.float32
    np.testing.assert_allclose(n, y, rtol=1e-5, atol=1e-6)


def test_fake_kernels_agree_with_the_real_ones():
    bits, weight = torch.rand(2, 6, 5, 4) < 0.5, torch.zeros(2, 4, 3, dtype=torch.uint8)
    conv = (weight, 3, [3, 2], [2, 1], [1, 0], [1, 2], 1, "zero")
    acc, point = operators.binary_conv2d(bits, *conv), ([1, 1], [0, 0], [1, 1])
    calls = [
        (operators.encode, (torch.randn(2, 3, 4), torch.zeros(2, 1, 1), torch.zeros(2, 1, dtype=torch.bool))),
        (operators.binary_conv2d, (bits, *conv)),
        (operators.signed_conv2d, (torch.randn(2, 3, 5, 4), *conv)),
        (operators.binary_linear, (torch.rand(2, 3, 20) < 0.5, weight, 20)),
        (operators.signed_linear, (torch.randn(2, 20), weight, 20)),
        (operators.signed_embedding, (torch.tensor([[0, 3, 1], [2, 2, 0]]), weight, torch.randn(2, 4), 20)),
        (operators.affine, (acc, torch.randn(4, 4), torch.randn(4), 1)),
        (operators.binary_attention, (*torch.randn(3, 2, 3, 4), torch.ones(3, 3).tril().bool(), 0.5, False)),
        (operators.binary_attention, (*torch.randn(3, 2, 3, 4), None, 0.5, True)),
        (operators.masked_linear, (torch.randn(2, 5), bits[:, :3, 0, 0], torch.randn(3, 5), torch.randn(3))),
        (operators.masked_conv2d, (torch.randn(2, 3, 5, 4), bits, torch.randn(6, 3, 1, 1), torch.randn(6), *point, 1)),
    ]
    for operator, arguments in calls:
        torch.library.opcheck(operator, arguments, test_utils=["test_schema", "test_faketensor"])


@pytest.mark.parametrize("groups", [1, 2])
def test_signed_convolution_equals_the_float_one(groups):
    x, filters = torch.randn(2, 4, 6, 5), torch.randn(1, 6, 4 // groups, 3, 3).sign()
    y = operators.signed_conv2d(x, packed_rows(filters), 4, [3, 3], [1, 2], [2, 1], [1, 1], groups, "zero")
    assert torch.equal(y, F.conv2d(x, filters[0], None, (1, 2), (2, 1), 1, groups))


@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(3, 8), st.integers(3, 8)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    groups=st.integers(1, 2),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_8_bit_convolution_is_exact_in_torch_and_numpy(shape, kernel, stride, padding, groups, seed):
    generator = random(seed)
    n, c, h, w = shape
    x = torch.randint(-127, 128, (n, c * groups, h, w), dtype=torch.int8, generator=generator)
    weight = torch.randint(-127, 128, (2 * groups, c, *kernel), dtype=torch.int8, generator=generator)
    settings = {"stride": [stride] * 2, "padding": [padding] * 2, "dilation": [1, 1], "groups": groups}
    expected = F.conv2d(x.double(), weight.double(), **settings).to(torch.int32)
    assert torch.equal(operators.int8_conv2d(x, weight, **settings), expected)
    actual = packed.Int8Conv2d(weight.numpy(), **settings)(x.numpy())
    assert actual.dtype == np.int32
    assert np.array_equal(actual, expected.numpy())


@pytest.mark.parametrize("planes", [1, 3])
def test_rows_of_a_table_are_the_same_in_torch_and_numpy(planes):
    table, scale = torch.randn(planes, 9, 21).sign(), torch.randn(planes, 9)
    numbers = torch.randint(9, (2, 5))
    weight = pack_rows((table > 0).numpy())
    y = operators.signed_embedding(numbers, torch.from_numpy(weight), scale, 21)
    expected = sum(F.embedding(numbers, rows * s[:, None]) for rows, s in zip(table, scale, strict=True))
    torch.testing.assert_close(y, expected)
    n = packed.SignedEmbedding(weight, scale.numpy(), features=21)(numbers.numpy())
    assert np.array_equal(y.numpy(), n)


def test_bytes_are_rounded_to_even_and_clamped_in_torch_and_numpy():
    x = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 126.6, 127.4, 1e9, -1e9, math.inf, -math.inf, math.nan]])
    expected = [0, 2, 2, 0, -2, 127, 127, 127, -127, 127, -127, 127]
    assert operators.quantize(x, 1.0).tolist() == [expected]
    assert packed.quantize(x.numpy(), 1.0).tolist() == [expected]
    assert operators.quantize(torch.tensor([[0.3]]), 10.0).tolist() == [[3]]


def test_long_rows_of_bytes_are_exact():
    x, weight = torch.full((1, 2**16), 127, dtype=torch.int8), torch.full((1, 2**16), -127, dtype=torch.int8)
    expected = [[-127 * 127 * 2**16]]
    assert operators.int8_linear(x, weight).tolist() == expected
    assert packed.int8_linear(x.numpy(), weight.numpy()).tolist() == expected


@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(3, 6), st.integers(3, 6)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 2),
    groups=st.integers(1, 2),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_masked_convolution_is_the_dense_one_where_the_mask_is_set(
    shape, kernel, stride, padding, dilation, groups, share, seed
):
    generator = random(seed)
    n, c, h, w = shape
    assume(h + 2 * padding > dilation * (kernel[0] - 1) and w + 2 * padding > dilation * (kernel[1] - 1))
    x = torch.randn((n, c * groups, h, w), generator=generator)
    weight, bias = torch.randn((2 * groups, c, *kernel), generator=generator), torch.randn(2 * groups)
    settings = {"stride": [stride] * 2, "padding": [padding] * 2, "dilation": [dilation] * 2, "groups": groups}
    dense = F.conv2d(x.double(), weight.double(), bias.double(), **settings)
    mask = torch.rand(dense.shape, generator=generator) < share
    expected = torch.where(mask, dense, 0.0).float()
    torch.testing.assert_close(operators.masked_conv2d(x, mask, weight, bias, **settings), expected)
    actual = packed.MaskedConv2d(weight.numpy(), bias.numpy(), **settings)(x.numpy(), mask.numpy())
    assert actual.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(actual), expected)


def test_masked_product_multiplies_only_where_the_mask_is_set():
    x = torch.tensor([[1.0, 2.0], [math.nan, 3.0]])
    weight, bias = torch.tensor([[1.0, 1.0], [2.0, -1.0]]), torch.tensor([0.5, 0.0])
    mask = torch.tensor([[True, False], [False, False]])
    assert operators.masked_linear(x, mask, weight, bias).tolist() == [[3.5, 0.0], [0.0, 0.0]]
    arrays = (t.numpy() for t in (x, mask, weight, bias))
    assert packed.masked_linear(*arrays).tolist() == [[3.5, 0.0], [0.0, 0.0]]
