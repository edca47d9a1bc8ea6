// AVX2 with FMA: 16 lanes are two registers, bits are counted by looking up nibbles.
#include <immintrin.h>

#include "kernels/conv/tile.h"
#include "kernels/conv/tiles.h"

namespace bnn {
namespace {

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

// Set bits of each byte, by looking up both nibbles.
BNN_INLINE __m256i ones_of(const __m256i& x) {
    const __m256i nibble = _mm256_set1_epi8(0x0f);
    const __m256i count = both_halves(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m256i low = _mm256_and_si256(x, nibble), high = _mm256_and_si256(_mm256_srli_epi16(x, 4), nibble);
    return _mm256_add_epi8(_mm256_shuffle_epi8(count, low), _mm256_shuffle_epi8(count, high));
}

// Bytes of each lane of 32 bits, added up.
BNN_INLINE __m256i sum_of_bytes(const __m256i& bytes) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1)), _mm256_set1_epi16(1));
}

BNN_INLINE uint16_t mask_at_most(const Pair& numbers, const int32_t* limits) {
    unsigned above = 0;
    for (int i = 0; i < 2; i++) {
        const __m256i limit = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(limits) + i);
        const __m256 greater = _mm256_castsi256_ps(_mm256_cmpgt_epi32(numbers.half[i], limit));
        above |= static_cast<unsigned>(_mm256_movemask_ps(greater)) << 8 * i;
    }
    return static_cast<uint16_t>(~above);
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
        const __m256i element = broadcast(x);
        for (int i = 0; i < 2; i++)
            sum.bytes.half[i] = _mm256_add_epi8(sum.bytes.half[i], ones_of(_mm256_xor_si256(element, w.half[i])));
    }

    static BNN_INLINE void settle(Sum& sum) {
        for (int i = 0; i < 2; i++) {
            sum.total.half[i] = _mm256_add_epi32(sum.total.half[i], sum_of_bytes(sum.bytes.half[i]));
            sum.bytes.half[i] = _mm256_setzero_si256();
        }
    }

    static BNN_INLINE void store(const Sum& sum, void* out) { store_pair(sum.total, out); }

    static BNN_INLINE uint16_t at_most(const Sum& sum, const int32_t* limits) {
        return mask_at_most(sum.total, limits);
    }
};

// Carry-save on four elements: the lookup, which is the dear part, counts only what carries twice.
//
//     carry(s, a, b) = (s & (a ^ b)) | (a & b),   s ^= a ^ b          s: the parity so far
//     ones takes a, b and c, d; twos takes their two carries; fours, the carry of that, are counted.
//     total = 4 counted + 2 popcount(twos) + popcount(ones)
//
// 26 operations for four elements, where the plain tile has 32.
struct CarrySave {
    struct Half {
        __m256i bytes, ones, twos, total;  // bytes: of the fours, up to 8 a step
    };
    static constexpr int kSteps = 31;

    static BNN_INLINE __m256i carry(__m256i& parity, const __m256i& a, const __m256i& b) {
        const __m256i different = _mm256_xor_si256(a, b);
        const __m256i carried =
            _mm256_or_si256(_mm256_and_si256(parity, different), _mm256_and_si256(a, b));
        parity = _mm256_xor_si256(parity, different);
        return carried;
    }

    static BNN_INLINE void count(Half& h, const __m256i& fours) { h.bytes = _mm256_add_epi8(h.bytes, ones_of(fours)); }

    static BNN_INLINE void add_four(Half& h, const __m256i* x, const __m256i* w) {
        const __m256i first = carry(h.ones, _mm256_xor_si256(x[0], w[0]), _mm256_xor_si256(x[1], w[1]));
        const __m256i second = carry(h.ones, _mm256_xor_si256(x[2], w[2]), _mm256_xor_si256(x[3], w[3]));
        count(h, carry(h.twos, first, second));
    }

    // At the end of a run.
    static BNN_INLINE void add_two(Half& h, const __m256i* x, const __m256i* w) {
        const __m256i carried = carry(h.ones, _mm256_xor_si256(x[0], w[0]), _mm256_xor_si256(x[1], w[1]));
        count(h, _mm256_and_si256(h.twos, carried));
        h.twos = _mm256_xor_si256(h.twos, carried);
    }

    static BNN_INLINE void add_one(Half& h, const __m256i& x, const __m256i& w) {
        const __m256i different = _mm256_xor_si256(x, w), carried = _mm256_and_si256(h.ones, different);
        h.ones = _mm256_xor_si256(h.ones, different);
        count(h, _mm256_and_si256(h.twos, carried));
        h.twos = _mm256_xor_si256(h.twos, carried);
    }

    static BNN_INLINE void settle(Half& h) {
        h.total = _mm256_add_epi32(h.total, sum_of_bytes(h.bytes));
        h.bytes = _mm256_setzero_si256();
    }

    template <int P, int Q>
    static BNN_INLINE void multiply(const Window& window, const uint32_t* w, Pair (&total)[P][Q]) {
        constexpr int kHalves = 2 * Q;
        Half sum[P * kHalves];
        unrolled<P * kHalves>([&](auto i) BNN_INLINE_LAMBDA { sum[i] = Half{}; });
        const auto weights = [&](int k, int half) BNN_INLINE_LAMBDA {
            return _mm256_load_si256(reinterpret_cast<const __m256i*>(w + k * kLanes * Q) + half);
        };
        int steps = 0;
        const auto step = [&]() BNN_INLINE_LAMBDA {
            if (++steps < kSteps) return;
            steps = 0;
            unrolled<P * kHalves>([&](auto i) BNN_INLINE_LAMBDA { settle(sum[i]); });
        };
        for (int r = 0; r < window.run_count; r++) {
            const uint32_t* x[P];
            unrolled<P>([&](auto p) BNN_INLINE_LAMBDA { x[p] = window.pixels[p] + window.runs[r]; });
            int k = 0;
            for (; k + 3 < window.run_length; k += 4, w += 4 * kLanes * Q, step())
                unrolled<P>([&](auto p) BNN_INLINE_LAMBDA {
                    const __m256i four[4] = {broadcast(x[p] + k), broadcast(x[p] + k + 1), broadcast(x[p] + k + 2),
                                             broadcast(x[p] + k + 3)};
                    unrolled<kHalves>([&](auto half) BNN_INLINE_LAMBDA {
                        const __m256i four_w[4] = {weights(0, half), weights(1, half), weights(2, half),
                                                   weights(3, half)};
                        add_four(sum[p * kHalves + half], four, four_w);
                    });
                });
            for (; k + 1 < window.run_length; k += 2, w += 2 * kLanes * Q, step())
                unrolled<P>([&](auto p) BNN_INLINE_LAMBDA {
                    const __m256i two[2] = {broadcast(x[p] + k), broadcast(x[p] + k + 1)};
                    unrolled<kHalves>([&](auto half) BNN_INLINE_LAMBDA {
                        const __m256i two_w[2] = {weights(0, half), weights(1, half)};
                        add_two(sum[p * kHalves + half], two, two_w);
                    });
                });
            for (; k < window.run_length; k++, w += kLanes * Q, step())
                unrolled<P>([&](auto p) BNN_INLINE_LAMBDA {
                    const __m256i one = broadcast(x[p] + k);
                    unrolled<kHalves>([&](auto half) BNN_INLINE_LAMBDA {
                        add_one(sum[p * kHalves + half], one, weights(0, half));
                    });
                });
        }
        unrolled<P * kHalves>([&](auto i) BNN_INLINE_LAMBDA {
            Half& h = sum[i];
            settle(h);
            const __m256i twos = _mm256_slli_epi32(sum_of_bytes(ones_of(h.twos)), 1);
            total[i / kHalves][i % kHalves / 2].half[i % 2] = _mm256_add_epi32(
                _mm256_add_epi32(_mm256_slli_epi32(h.total, 2), twos), sum_of_bytes(ones_of(h.ones)));
        });
    }

    template <int P, int Q>
    static void accumulate(const Window& window, const uint32_t* w, void* out) {
        Pair total[P][Q];
        multiply<P, Q>(window, w, total);
        for (int p = 0; p < P; p++)
            for (int q = 0; q < Q; q++)
                store_pair(total[p][q], static_cast<uint32_t*>(out) + kLanes * (p * Q + q));
    }

    template <int P, int Q>
    static void threshold(const Window& window, const uint32_t* w, const int32_t* const* limits,
                          uint16_t* const* bits) {
        Pair total[P][Q];
        multiply<P, Q>(window, w, total);
        for (int p = 0; p < P; p++)
            for (int q = 0; q < Q; q++) bits[p][q] = mask_at_most(total[p][q], limits[p] + kLanes * q);
    }

    template <int P, int Q>
    static constexpr ConvTile tile(const char* name) {
        return {Dot::binary, name, P, Q, accumulate<P, Q>, threshold<P, Q>};
    }
};

// A sum or a difference as a bit says. Slower than multiplication by ±1, but of a 32nd of the memory.
struct Signs {
    struct Sum {
        __m256 half[2];
    };
    static BNN_INLINE Sum zero() { return {{_mm256_setzero_ps(), _mm256_setzero_ps()}}; }
    static BNN_INLINE void store(const Sum& sum, void* out) {
        for (int i = 0; i < 2; i++) _mm256_storeu_ps(static_cast<float*>(out) + 8 * i, sum.half[i]);
    }

    template <int P, int Q>
    static BNN_INLINE void add(Sum (&sum)[P][Q], const float* const* x, const uint32_t* w) {
        const __m256i top = _mm256_set1_epi32(INT32_MIN);
        for (int q = 0; q < Q; q++)
            for (int i = 0; i < 2; i++) {
                // Backwards, so that the bit of the input is the topmost one; a set bit leaves the sign.
                __m256i word = _mm256_xor_si256(_mm256_load_si256(reinterpret_cast<const __m256i*>(w + kLanes * q + 8 * i)),
                                                _mm256_set1_epi32(-1));
                for (int k = 31; k >= 0; k--) {
                    const __m256 sign = _mm256_castsi256_ps(_mm256_and_si256(word, top));
                    for (int p = 0; p < P; p++)
                        sum[p][q].half[i] =
                            _mm256_add_ps(sum[p][q].half[i], _mm256_xor_ps(_mm256_broadcast_ss(x[p] + k), sign));
                    word = _mm256_slli_epi32(word, 1);
                }
            }
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

}  // namespace

const ConvTile kConvAvx2[] = {
    CarrySave::tile<1, 2>("carry-save 1x2"),  CarrySave::tile<1, 1>("carry-save 1x1"),
    CarrySave::tile<2, 1>("carry-save 2x1"),  binary_tile<Binary, 2, 2>("2x2"),
    binary_tile<Binary, 4, 1>("4x1"),   binary_tile<Binary, 1, 2>("1x2"),
    float_tile<FloatDot, 6, 1>("6x1"),
    float_tile<FloatDot, 3, 2>("3x2"),  float_tile<FloatDot, 1, 4>("1x4"),
    byte_tile<Bytes, 4, 1>("4x1"),                   byte_tile<Bytes, 2, 2>("2x2"),
    signs_tile<Signs, 1, 2>("sign 1x2"),
};

const SpinFn kSpinAvx2 = spin<Binary, 4>;

}  // namespace bnn
