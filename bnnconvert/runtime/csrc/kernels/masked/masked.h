// Layers of which a mask names the outputs to compute.
//
//     out[i] = bias[i] + sum over k of x[k] w[i][k] where bit i of the mask is set, else 0        i = 0 ... 15
//
// Work is in proportion to the bits that are set: a product of two rows for each, with the lanes of a vector along k.
// The tiles of `kernels/conv` read a weight once for several pixels, so they are faster where many bits are set.
#pragma once

#include <cstdint>

#include "kernels/chain/chain.h"

namespace bnn {

// A window is a few runs of neighbouring numbers, as in `kernels/conv`.
struct MaskedWindow {
    const float* pixel;
    const int32_t* runs;  // offset of each run from there
    int run_count, run_length;
};

// Numbers of a row of weights, each of whose runs is padded with zeros to whole vectors.
constexpr int64_t masked_row(int run_count, int run_length) {
    return int64_t{run_count} * blocks_for(run_length) * kLanes;
}

using MaskedFn = void (*)(const MaskedWindow& window, const float* weights, const float* bias, uint16_t mask,
                          float* out);

extern const MaskedFn kMaskedPortable;
#if defined(__x86_64__)
extern const MaskedFn kMaskedAvx2, kMaskedAvx512;
#elif defined(__aarch64__)
extern const MaskedFn kMaskedNeon;
#endif

}  // namespace bnn
