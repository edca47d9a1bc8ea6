// Direct convolution in tiles of P pixels and Q blocks of 16 output channels.
//
//     acc[p][q][lane] = sum over k of  dot(x[p][k], w[k][q][lane])
//
// An element x[p][k] is 32 bits wide whatever the operand: 32 binary channels, one float, or four bytes. With channels
// last, the taps of a kernel row are neighbours in memory, so a window is a few runs of elements: no im2col. A linear
// layer is the same with one run per row. `dot` is what an instruction set has to bring:
//
//     binary   popcount(x xor w), added as int32: mismatches
//     float    x * w, fused where the machine can
//     bytes    unsigned x times signed w, four products, added as int32
//     signs    floats x, added or subtracted as the bits of w say
//
// Weights lie as [group of Q blocks][k][Q][16 lanes]. Those of signs are words of the next 32 inputs of a run, its last
// one filled up with zeros; a tile for floats takes them as floats, too.
#pragma once

#include <cstdint>

#include "kernels/chain/chain.h"

namespace bnn {

enum class Dot : uint8_t { binary, float32, bytes, signs };

// Where a tile reads.
struct Window {
    const uint32_t* const* pixels;  // P pointers, each to the first element of its pixel's window
    const int32_t* runs;            // offset of each run from there, in elements
    int32_t run_count;
    int32_t run_length;
};

// Accumulators of a tile to out[P][Q][16], int32 or float.
using AccumulateFn = void (*)(const Window&, const uint32_t* weights, void* out);

// Bits of a tile: bit = mismatches <= limits[p][16 q + lane], 16 of them to bits[p][q].
using ThresholdFn = void (*)(const Window&, const uint32_t* weights, const int32_t* const* limits,
                             uint16_t* const* bits);

struct ConvTile {
    Dot dot;
    const char* name;
    int pixels, blocks;
    AccumulateFn accumulate;
    ThresholdFn threshold;  // binary only
};

constexpr int kMaxTileBlocks = 8;

// Runs the binary dot on registers alone; returns the number of multiply-adds.
using SpinFn = int64_t (*)(int64_t rounds);

}  // namespace bnn
