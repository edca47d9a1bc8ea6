// AVX-512 with VPOPCNTDQ and VNNI: 16 lanes are one register.
#include <immintrin.h>

#include "kernels/conv/tiles.h"
#include "kernels/conv/tile.h"

namespace bnn {
namespace {

struct Binary {
    using Sum = __m512i;
    using Weights = __m512i;
    static constexpr int kSteps = 0;
    static BNN_INLINE Sum zero() { return _mm512_setzero_si512(); }
    static BNN_INLINE Weights load(const uint32_t* w) { return _mm512_load_si512(w); }
    static BNN_INLINE void add(Sum& sum, const uint32_t* x, const Weights& w) {
        const __m512i different = _mm512_xor_si512(_mm512_set1_epi32(static_cast<int>(*x)), w);
        sum = _mm512_add_epi32(sum, _mm512_popcnt_epi32(different));
    }
    static BNN_INLINE void settle(Sum&) {}
    static BNN_INLINE void store(const Sum& sum, void* out) { _mm512_storeu_si512(out, sum); }
    static BNN_INLINE uint16_t at_most(const Sum& sum, const int32_t* limits) {
        return _mm512_cmple_epi32_mask(sum, _mm512_loadu_si512(limits));
    }
};

// Carry-save: ones is the parity so far, o1 and o2 what it becomes after two more elements.
//
//     o1 = ones ^ x1 ^ w1,   o2 = o1 ^ x2 ^ w2,   carry = (ones & ~o1) | (o1 & ~o2)
//     sum += popcount(carry),   total = 2 sum + popcount(ones)
//
// Five operations for two elements in place of six, and one popcount in place of two. Where three-source operations
// are as fast as others (Intel) that is a fifth faster; where they are not (Zen 5), the plain tile wins.
struct CarrySave {
    struct Sum {
        __m512i sum, ones;
    };
    static constexpr int kParity = 0x96;                             // a ^ b ^ c
    static constexpr int kCarry = 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6;  // of bits 4 ones + 2 o1 + o2

    // In assembly, as GCC spills registers around the three-source intrinsics, which overwrite one of their sources.
    static BNN_INLINE void add_two(Sum& s, const uint32_t* x, const __m512i& w1, const __m512i& w2) {
        // On locals: an array's element as an operand would keep the whole array in memory.
        __m512i sum = s.sum, ones = s.ones, o1, o2;
        __asm__("vmovdqa64 %[ones], %[o1]\n\t"
                "vpternlogd %[parity], %[x1]%{1to16%}, %[w1], %[o1]\n\t"
                "vmovdqa64 %[o1], %[o2]\n\t"
                "vpternlogd %[parity], %[x2]%{1to16%}, %[w2], %[o2]\n\t"
                "vpternlogd %[carry], %[o2], %[o1], %[ones]\n\t"
                "vpopcntd %[ones], %[ones]\n\t"
                "vpaddd %[ones], %[sum], %[sum]"
                : [sum] "+v"(sum), [ones] "+v"(ones), [o1] "=&v"(o1), [o2] "=&v"(o2)
                : [x1] "m"(x[0]), [x2] "m"(x[1]), [w1] "v"(w1), [w2] "v"(w2), [parity] "i"(kParity),
                  [carry] "i"(kCarry));
        s = {sum, o2};
    }

    // The last element of an odd run: the carry is ones & ~o1.
    static BNN_INLINE void add_one(Sum& s, const uint32_t* x, const __m512i& w) {
        const __m512i o1 =
            _mm512_ternarylogic_epi32(s.ones, w, _mm512_set1_epi32(static_cast<int>(*x)), kParity);
        s.sum = _mm512_add_epi32(s.sum, _mm512_popcnt_epi32(_mm512_andnot_si512(o1, s.ones)));
        s.ones = o1;
    }

    template <int P, int Q>
    static BNN_INLINE void multiply(const Window& window, const uint32_t* w, __m512i (&total)[P][Q]) {
        Sum sum[P * Q];
        unrolled<P * Q>([&](auto i) BNN_INLINE_LAMBDA { sum[i] = {_mm512_setzero_si512(), _mm512_setzero_si512()}; });
        for (int r = 0; r < window.run_count; r++) {
            const uint32_t* x[P];
            unrolled<P>([&](auto p) BNN_INLINE_LAMBDA { x[p] = window.pixels[p] + window.runs[r]; });
            int k = 0;
            for (; k + 1 < window.run_length; k += 2, w += 2 * kLanes * Q)
                unrolled<Q>([&](auto q) BNN_INLINE_LAMBDA {
                    const __m512i w1 = _mm512_load_si512(w + kLanes * q);
                    const __m512i w2 = _mm512_load_si512(w + kLanes * (Q + q));
                    unrolled<P>([&](auto p) BNN_INLINE_LAMBDA { add_two(sum[p * Q + q], x[p] + k, w1, w2); });
                });
            if (k < window.run_length) {
                unrolled<P * Q>([&](auto i) BNN_INLINE_LAMBDA {
                    add_one(sum[i], x[i / Q] + k, _mm512_load_si512(w + kLanes * (i % Q)));
                });
                w += kLanes * Q;
            }
        }
        unrolled<P * Q>([&](auto i) BNN_INLINE_LAMBDA {
            total[i / Q][i % Q] =
                _mm512_add_epi32(_mm512_slli_epi32(sum[i].sum, 1), _mm512_popcnt_epi32(sum[i].ones));
        });
    }

    template <int P, int Q>
    static void accumulate(const Window& window, const uint32_t* w, void* out) {
        __m512i total[P][Q];
        multiply<P, Q>(window, w, total);
        for (int p = 0; p < P; p++)
            for (int q = 0; q < Q; q++)
                Binary::store(total[p][q], static_cast<uint32_t*>(out) + kLanes * (p * Q + q));
    }

    template <int P, int Q>
    static void threshold(const Window& window, const uint32_t* w, const int32_t* const* limits,
                          uint16_t* const* bits) {
        __m512i total[P][Q];
        multiply<P, Q>(window, w, total);
        for (int p = 0; p < P; p++)
            for (int q = 0; q < Q; q++) bits[p][q] = Binary::at_most(total[p][q], limits[p] + kLanes * q);
    }

    template <int P, int Q>
    static constexpr ConvTile tile(const char* name) {
        return {Dot::binary, name, P, Q, accumulate<P, Q>, threshold<P, Q>};
    }
};

struct Bytes {
    using Sum = __m512i;
    using Weights = __m512i;
    static constexpr int kSteps = 0;
    static BNN_INLINE Sum zero() { return _mm512_setzero_si512(); }
    static BNN_INLINE Weights load(const uint32_t* w) { return _mm512_load_si512(w); }
    static BNN_INLINE void add(Sum& sum, const uint32_t* x, const Weights& w) {
        sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi32(static_cast<int>(*x)), w);
    }
    static BNN_INLINE void settle(Sum&) {}
    static BNN_INLINE void store(const Sum& sum, void* out) { _mm512_storeu_si512(out, sum); }
};

// Four inputs at a time: the sixteen sums that their signs may give are one register, from which four bits of a word
// choose. One choice and one addition for 64 weights, where multiplication by ±1 takes four.
struct Signs {
    using Sum = __m512;
    static BNN_INLINE Sum zero() { return _mm512_setzero_ps(); }
    static BNN_INLINE void store(const Sum& sum, void* out) { _mm512_storeu_ps(out, sum); }

    // ±1 as bit `number` of the lane's own number says.
    static BNN_INLINE __m512 pattern(int number) {
        const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const __mmask16 is_set = _mm512_test_epi32_mask(lanes, _mm512_set1_epi32(1 << number));
        return _mm512_mask_blend_ps(is_set, _mm512_set1_ps(-1), _mm512_set1_ps(1));
    }

    template <int P, int Q>
    static BNN_INLINE void add(Sum (&sum)[P][Q], const float* const* x, const uint32_t* w) {
        const __m512 s0 = pattern(0), s1 = pattern(1), s2 = pattern(2), s3 = pattern(3);
        __m512i words[Q];
        unrolled<Q>([&](auto q) BNN_INLINE_LAMBDA { words[q] = _mm512_load_si512(w + kLanes * q); });
        for (int k = 0; k < 32; k += 4) {
            __m512 sums[P];
            unrolled<P>([&](auto p) BNN_INLINE_LAMBDA {
                __m512 t = _mm512_mul_ps(s0, _mm512_set1_ps(x[p][k]));
                t = _mm512_fmadd_ps(s1, _mm512_set1_ps(x[p][k + 1]), t);
                t = _mm512_fmadd_ps(s2, _mm512_set1_ps(x[p][k + 2]), t);
                sums[p] = _mm512_fmadd_ps(s3, _mm512_set1_ps(x[p][k + 3]), t);
            });
            unrolled<Q>([&](auto q) BNN_INLINE_LAMBDA {
                unrolled<P>([&](auto p) BNN_INLINE_LAMBDA {
                    sum[p][q] = _mm512_add_ps(sum[p][q], _mm512_permutexvar_ps(words[q], sums[p]));
                });
                words[q] = _mm512_srli_epi32(words[q], 4);
            });
        }
    }
};

}  // namespace

const ConvTile kConvAvx512[] = {
    CarrySave::tile<3, 4>("carry-save 3x4"),      binary_tile<Binary, 5, 4>("plain 5x4"),
    CarrySave::tile<5, 2>("carry-save 5x2"),      binary_tile<Binary, 4, 4>("plain 4x4"),
    CarrySave::tile<7, 1>("carry-save 7x1"),      binary_tile<Binary, 7, 2>("plain 7x2"),
    CarrySave::tile<1, 8>("carry-save 1x8"),      binary_tile<Binary, 1, 8>("plain 1x8"),
    binary_tile<Binary, 12, 1>("plain 12x1"), float_tile<FloatDot, 6, 4>("6x4"),
    float_tile<FloatDot, 12, 2>("12x2"),    float_tile<FloatDot, 14, 1>("14x1"),
    float_tile<FloatDot, 1, 8>("1x8"),      byte_tile<Bytes, 6, 4>("6x4"),
    byte_tile<Bytes, 12, 2>("12x2"),                     byte_tile<Bytes, 14, 1>("14x1"),
    signs_tile<Signs, 2, 8>("choice 2x8"),  signs_tile<Signs, 4, 4>("choice 4x4"),
    signs_tile<Signs, 1, 8>("choice 1x8"),
};

const SpinFn kSpinAvx512 = spin<Binary, 12>;

}  // namespace bnn
