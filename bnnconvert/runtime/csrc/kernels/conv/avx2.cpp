// AVX2 with FMA: 16 lanes are two registers, bits are counted by looking up nibbles.
#include <immintrin.h>

#include "kernels/conv/tile.h"
#include "kernels/conv/tiles.h"

namespace bnn {
namespace {

constexpr Isa kIsa = Isa::avx2;

BNN_INLINE __m256i both_halves(__m128i half) { return _mm256_broadcastsi128_si256(half); }

BNN_INLINE __m256i broadcast(const uint32_t* x) { return _mm256_set1_epi32(static_cast<int>(*x)); }

struct Pair {
    __m256i half[2];
};

BNN_INLINE Pair load_pair(const uint32_t* w) {
    const __m256i* halves = reinterpret_cast<const __m256i*>(w);
    return {{_mm256_load_si256(halves), _mm256_load_si256(halves + 1)}};
}

BNN_INLINE void store_pair(const Pair& pair, void* out) {
    _mm256_storeu_si256(static_cast<__m256i*>(out), pair.half[0]);
    _mm256_storeu_si256(static_cast<__m256i*>(out) + 1, pair.half[1]);
}

struct Binary {
    struct Sum {
        Pair bytes;  // up to 8 a step, so they are added up after 31 steps
        Pair total;
    };
    using Weights = Pair;
    static constexpr int kSteps = 31;
    static BNN_INLINE Sum zero() { return Sum{}; }
    static BNN_INLINE Weights load(const uint32_t* w) { return load_pair(w); }

    static BNN_INLINE void add(Sum& sum, const uint32_t* x, const Weights& w) {
        const __m256i nibble = _mm256_set1_epi8(0x0f);
        const __m256i count = both_halves(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
        const __m256i element = broadcast(x);
        for (int i = 0; i < 2; i++) {
            const __m256i different = _mm256_xor_si256(element, w.half[i]);
            const __m256i low = _mm256_and_si256(different, nibble);
            const __m256i high = _mm256_and_si256(_mm256_srli_epi16(different, 4), nibble);
            const __m256i ones = _mm256_add_epi8(_mm256_shuffle_epi8(count, low), _mm256_shuffle_epi8(count, high));
            sum.bytes.half[i] = _mm256_add_epi8(sum.bytes.half[i], ones);
        }
    }

    static BNN_INLINE void settle(Sum& sum) {
        const __m256i ones8 = _mm256_set1_epi8(1), ones16 = _mm256_set1_epi16(1);
        for (int i = 0; i < 2; i++) {
            const __m256i pairs = _mm256_maddubs_epi16(sum.bytes.half[i], ones8);
            sum.total.half[i] = _mm256_add_epi32(sum.total.half[i], _mm256_madd_epi16(pairs, ones16));
            sum.bytes.half[i] = _mm256_setzero_si256();
        }
    }

    static BNN_INLINE void store(const Sum& sum, void* out) { store_pair(sum.total, out); }

    static BNN_INLINE uint16_t at_most(const Sum& sum, const int32_t* limits) {
        unsigned above = 0;
        for (int i = 0; i < 2; i++) {
            const __m256i limit = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(limits) + i);
            const __m256 greater = _mm256_castsi256_ps(_mm256_cmpgt_epi32(sum.total.half[i], limit));
            above |= static_cast<unsigned>(_mm256_movemask_ps(greater)) << 8 * i;
        }
        return static_cast<uint16_t>(~above);
    }
};

// Widened to 16 bits before the products: the instruction for bytes saturates.
struct Bytes {
    using Sum = Pair;
    using Weights = Pair;
    static constexpr int kSteps = 0;
    static BNN_INLINE Sum zero() { return Pair{}; }
    static BNN_INLINE Weights load(const uint32_t* w) { return load_pair(w); }
    static BNN_INLINE void add(Sum& sum, const uint32_t* x, const Weights& w) {
        const __m256i even = _mm256_set1_epi16(0x00ff), element = broadcast(x);
        const __m256i x_even = _mm256_and_si256(element, even), x_odd = _mm256_srli_epi16(element, 8);
        for (int i = 0; i < 2; i++) {
            const __m256i w_even = _mm256_srai_epi16(_mm256_slli_epi16(w.half[i], 8), 8);
            const __m256i w_odd = _mm256_srai_epi16(w.half[i], 8);
            sum.half[i] = _mm256_add_epi32(sum.half[i], _mm256_madd_epi16(x_even, w_even));
            sum.half[i] = _mm256_add_epi32(sum.half[i], _mm256_madd_epi16(x_odd, w_odd));
        }
    }
    static BNN_INLINE void settle(Sum&) {}
    static BNN_INLINE void store(const Sum& sum, void* out) { store_pair(sum, out); }
};

template <int P, int Q>
constexpr ConvTile byte_tile(const char* name) {
    return {Dot::bytes, kIsa, name, P, Q, accumulate<Bytes, P, Q>, nullptr};
}

}  // namespace

const ConvTile kConvAvx2[] = {
    binary_tile<Binary, 4, 1>(kIsa, "4x1"),   binary_tile<Binary, 2, 2>(kIsa, "2x2"),
    binary_tile<Binary, 1, 2>(kIsa, "1x2"),   float_tile<FloatDot, 6, 1>(kIsa, "6x1"),
    float_tile<FloatDot, 3, 2>(kIsa, "3x2"),  float_tile<FloatDot, 1, 4>(kIsa, "1x4"),
    byte_tile<4, 1>("4x1"),                   byte_tile<2, 2>("2x2"),
};

}  // namespace bnn
