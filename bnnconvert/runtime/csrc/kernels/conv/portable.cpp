// Plain C++, one tile per operand: the oracle of all others, and what runs where nothing else does.
#include "kernels/conv/tile.h"
#include "kernels/conv/tiles.h"

namespace bnn {
namespace {

struct Integers {
    struct Sum {
        int32_t lane[kLanes];
    };
    using Weights = const uint32_t*;
    static constexpr int kSteps = 0;
    static BNN_INLINE Sum zero() { return {}; }
    static BNN_INLINE Weights load(const uint32_t* w) { return w; }
    static BNN_INLINE void settle(Sum&) {}
    static BNN_INLINE void store(const Sum& sum, void* out) {
        for (int i = 0; i < kLanes; i++) static_cast<int32_t*>(out)[i] = sum.lane[i];
    }
};

// In steps that a compiler turns into vectors; its own function is a call where the base instruction set has none.
BNN_INLINE uint32_t count_bits(uint32_t x) {
    x -= x >> 1 & 0x55555555;
    x = (x & 0x33333333) + (x >> 2 & 0x33333333);
    x = (x + (x >> 4)) & 0x0f0f0f0f;
    x += x >> 8;
    return (x + (x >> 16)) & 0x3f;
}

struct Binary : Integers {
    static BNN_INLINE void add(Sum& sum, const uint32_t* x, const Weights& w) {
        for (int i = 0; i < kLanes; i++) sum.lane[i] += static_cast<int32_t>(count_bits(*x ^ w[i]));
    }
    static BNN_INLINE uint16_t at_most(const Sum& sum, const int32_t* limits) {
        unsigned bits = 0;
        for (int i = 0; i < kLanes; i++) bits |= unsigned{sum.lane[i] <= limits[i]} << i;
        return static_cast<uint16_t>(bits);
    }
};

struct Bytes : Integers {
    static BNN_INLINE void add(Sum& sum, const uint32_t* x, const Weights& w) {
        for (int i = 0; i < kLanes; i++)
            for (int shift = 0; shift < 32; shift += 8)
                sum.lane[i] += static_cast<uint8_t>(*x >> shift) * static_cast<int8_t>(w[i] >> shift);
    }
};

}  // namespace

const ConvTile kConvPortable[] = {
    binary_tile<Binary, 2, 1>("2x1"),
    float_tile<FloatDot, 2, 1>("2x1"),
    {Dot::bytes, "2x1", 2, 1, accumulate<Bytes, 2, 1>, nullptr},
};

const SpinFn kSpinPortable = spin<Binary, 2>;

}  // namespace bnn
