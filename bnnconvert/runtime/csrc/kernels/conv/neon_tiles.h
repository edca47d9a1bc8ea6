// NEON: 16 lanes are four registers. With the dot-product extension four bytes are added up into a lane at once;
// without it bytes are counted as bytes and widened after 31 steps.
#pragma once

#include <arm_neon.h>

#include "kernels/conv/tile.h"
#include "kernels/conv/tiles.h"

namespace bnn {
namespace {

struct Quad {
    uint32x4_t part[4];
};

BNN_INLINE Quad load_quad(const uint32_t* w) {
    return {{vld1q_u32(w), vld1q_u32(w + 4), vld1q_u32(w + 8), vld1q_u32(w + 12)}};
}

BNN_INLINE void store_quad(const Quad& quad, void* out) {
    for (int i = 0; i < 4; i++) vst1q_u32(static_cast<uint32_t*>(out) + 4 * i, quad.part[i]);
}

BNN_INLINE uint16_t at_most_quad(const Quad& sum, const int32_t* limits) {
    const uint32x4_t place = {1, 2, 4, 8};
    unsigned bits = 0;
    for (int i = 0; i < 4; i++) {
        const uint32x4_t within = vcleq_s32(vreinterpretq_s32_u32(sum.part[i]), vld1q_s32(limits + 4 * i));
        bits |= vaddvq_u32(vandq_u32(within, place)) << 4 * i;
    }
    return static_cast<uint16_t>(bits);
}

#if defined(__ARM_FEATURE_DOTPROD)

struct Binary {
    using Sum = Quad;
    using Weights = Quad;
    static constexpr int kSteps = 0;
    static BNN_INLINE Sum zero() { return Quad{}; }
    static BNN_INLINE Weights load(const uint32_t* w) { return load_quad(w); }
    static BNN_INLINE void add(Sum& sum, const uint32_t* x, const Weights& w) {
        const uint32x4_t element = vdupq_n_u32(*x);
        for (int i = 0; i < 4; i++) {
            const uint8x16_t count = vcntq_u8(vreinterpretq_u8_u32(veorq_u32(element, w.part[i])));
            sum.part[i] = vdotq_u32(sum.part[i], count, vdupq_n_u8(1));
        }
    }
    static BNN_INLINE void settle(Sum&) {}
    static BNN_INLINE void store(const Sum& sum, void* out) { store_quad(sum, out); }
    static BNN_INLINE uint16_t at_most(const Sum& sum, const int32_t* limits) { return at_most_quad(sum, limits); }
};

#else

struct Binary {
    struct Sum {
        uint8x16_t bytes[4];  // up to 8 a step, so they are added up after 31 steps
        Quad total;
    };
    using Weights = Quad;
    static constexpr int kSteps = 31;
    static BNN_INLINE Sum zero() { return Sum{}; }
    static BNN_INLINE Weights load(const uint32_t* w) { return load_quad(w); }
    static BNN_INLINE void add(Sum& sum, const uint32_t* x, const Weights& w) {
        const uint32x4_t element = vdupq_n_u32(*x);
        for (int i = 0; i < 4; i++)
            sum.bytes[i] = vaddq_u8(sum.bytes[i], vcntq_u8(vreinterpretq_u8_u32(veorq_u32(element, w.part[i]))));
    }
    static BNN_INLINE void settle(Sum& sum) {
        for (int i = 0; i < 4; i++) {
            sum.total.part[i] = vpadalq_u16(sum.total.part[i], vpaddlq_u8(sum.bytes[i]));
            sum.bytes[i] = vdupq_n_u8(0);
        }
    }
    static BNN_INLINE void store(const Sum& sum, void* out) { store_quad(sum.total, out); }
    static BNN_INLINE uint16_t at_most(const Sum& sum, const int32_t* limits) {
        return at_most_quad(sum.total, limits);
    }
};

#endif

// Unsigned times signed bytes, widened to 16 bits: the dot product of mixed signs is a later extension.
struct Bytes {
    using Sum = Quad;
    using Weights = Quad;
    static constexpr int kSteps = 0;
    static BNN_INLINE Sum zero() { return Quad{}; }
    static BNN_INLINE Weights load(const uint32_t* w) { return load_quad(w); }
    static BNN_INLINE void add(Sum& sum, const uint32_t* x, const Weights& w) {
        const int16x8_t element = vreinterpretq_s16_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(*x))));
        for (int i = 0; i < 4; i++) {
            const int8x16_t bytes = vreinterpretq_s8_u32(w.part[i]);
            const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
            const int32x4_t a = vmull_s16(vget_low_s16(low), vget_low_s16(element));
            const int32x4_t b = vmull_s16(vget_high_s16(low), vget_high_s16(element));
            const int32x4_t c = vmull_s16(vget_low_s16(high), vget_low_s16(element));
            const int32x4_t d = vmull_s16(vget_high_s16(high), vget_high_s16(element));
            const int32x4_t four = vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
            sum.part[i] = vaddq_u32(sum.part[i], vreinterpretq_u32_s32(four));
        }
    }
    static BNN_INLINE void settle(Sum&) {}
    static BNN_INLINE void store(const Sum& sum, void* out) { store_quad(sum, out); }
};

}  // namespace
}  // namespace bnn

#define BNN_NEON_TILES                                                                                            \
    binary_tile<Binary, 4, 1>("4x1"), binary_tile<Binary, 2, 2>("2x2"),                                \
        binary_tile<Binary, 1, 2>("1x2"), float_tile<FloatDot, 6, 1>("6x1"),                          \
        float_tile<FloatDot, 3, 2>("3x2"), float_tile<FloatDot, 1, 4>("1x4"),                         \
        byte_tile<Bytes, 4, 1>("4x1"), byte_tile<Bytes, 2, 2>("2x2")
