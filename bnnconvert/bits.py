"""The bit convention, once, in numpy.

    sign(x) = +1 if x >= 0 else -1        (so sign(0) = sign(-0.0) = +1, sign(NaN) = -1)
    bit     = 1 <=> +1
    dot     = K - 2 * popcount(a xor w)   with the true K; unused tail bits are 0 on both sides and cancel

Bits are packed least significant first. On disk a row is padded to a byte; in memory to a word.
"""

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.unsignedinteger]

MAX_BYTES = 2**16
"""8-bit weights of a row, at most: then no sum of their products leaves int32."""


def sign_bits(x: npt.NDArray[np.floating] | npt.NDArray[np.integer]) -> Bits:
    """Bit of sign(x): true where x >= 0, false for NaN."""
    return np.asarray(x >= 0)


def row_bytes(k: int) -> int:
    """Bytes that a row of `k` bits takes on disk."""
    return (k + 7) // 8


def pack_rows(bits: Bits) -> Bytes:
    """Pack the last axis into bytes, least significant bit first.

    Shapes: (..., K) -> (..., ceil(K / 8)).
    """
    return np.packbits(bits, axis=-1, bitorder="little")


def unpack_rows(row: Bytes, k: int) -> Bits:
    """Inverse of `pack_rows`.

    Shapes: (..., ceil(K / 8)) -> (..., K).
    """
    return np.unpackbits(row, axis=-1, count=k, bitorder="little").astype(np.bool_)


def word_type(k: int) -> type[np.unsignedinteger]:
    """Narrowest unsigned word, 8 to 64 bits, that holds `k` bits, else 64 bits."""
    for bits, word in ((8, np.uint8), (16, np.uint16), (32, np.uint32)):
        if k <= bits:
            return word
    return np.uint64


def pack_words(bits: Bits) -> Words:
    """Pack the last axis into little-endian words of `word_type(K)`.

    Shapes: (..., K) -> (..., words).
    """
    word = np.dtype(word_type(bits.shape[-1])).newbyteorder("<")
    row = pack_rows(bits)
    padding = -row.shape[-1] % word.itemsize
    if padding:
        row = np.concatenate([row, np.zeros((*row.shape[:-1], padding), np.uint8)], axis=-1)
    return np.ascontiguousarray(row).view(word)


def dot(a_words: Words, w_words: Words, k: int) -> npt.NDArray[np.int32]:
    """Dot product of ±1 vectors over the last axis, `K - 2 popcount(a xor w)`.

    Shapes: (..., words), (..., words) -> (...), broadcast.
    """
    mismatches = np.bitwise_count(a_words ^ w_words).sum(axis=-1, dtype=np.int32)
    return np.asarray(np.int32(k) - 2 * mismatches, np.int32)
