"""The bit convention, against plain arithmetic."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnnconvert.bits import dot, pack_rows, pack_words, row_bytes, sign_bits, unpack_rows, word_type


def test_sign_of_zero_minus_zero_and_nan() -> None:
    x = np.array([0.0, -0.0, np.nan, -1e-45, 1e-45, -np.inf, np.inf], np.float32)
    assert sign_bits(x).tolist() == [True, True, False, False, True, False, True]


def test_least_significant_bit_first() -> None:
    bits = np.array([1, 0, 0, 0, 0, 0, 0, 0, 1, 1], np.bool_)
    assert pack_rows(bits).tolist() == [1, 3]
    assert pack_words(bits).tolist() == [0x0301]


@given(st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_pack_and_unpack(k: int, seed: int) -> None:
    bits = np.random.default_rng(seed).integers(0, 2, (3, k)).astype(np.bool_)
    packed = pack_rows(bits)
    assert packed.shape == (3, row_bytes(k))
    assert np.array_equal(unpack_rows(packed, k), bits)
    tail = unpack_rows(packed, 8 * row_bytes(k))[:, k:]
    assert not tail.any()


@given(st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_dot_of_words_is_the_dot_of_signs(k: int, seed: int) -> None:
    a, w = np.random.default_rng(seed).integers(0, 2, (2, 5, k)).astype(np.bool_)
    expected = ((2 * a.astype(np.int32) - 1) * (2 * w.astype(np.int32) - 1)).sum(-1)
    got = dot(pack_words(a), pack_words(w), k)
    assert got.dtype == np.int32
    assert np.array_equal(got, expected)


@pytest.mark.parametrize(
    ("k", "bits"), [(1, 8), (8, 8), (9, 16), (16, 16), (17, 32), (32, 32), (33, 64), (64, 64), (65, 64)]
)
def test_words_are_as_narrow_as_possible(k: int, bits: int) -> None:
    assert np.dtype(word_type(k)).itemsize * 8 == bits
