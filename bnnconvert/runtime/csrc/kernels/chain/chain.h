// What happens to a tile of numbers between the operator that made it and the images it ends up in.
//
// A tile is [pixels][blocks][16 channels] floats. A chain is a list of operations on it: batch norm, residual addition,
// activation, and on the way the stores, as floats, as bits for the next binary layer, as bytes for the next int8 one.
// Each runs over the whole tile while it is in the first-level cache, so any chain costs one pass over memory.
#pragma once

#include <cstdint>

#include "kernels/inline.h"

namespace bnn {

constexpr int kLanes = 16;  // channels of a block, on every instruction set

constexpr int blocks_for(int channels) { return (channels + kLanes - 1) / kLanes; }

// A value in memory: channels last, in units of 4 bytes. Steps of 0 repeat a value over an axis.
struct Image {
    uint32_t* data;  // of sample 0, row 0, column 0, channel 0; a halo may lie around it
    int64_t sample, row, column;
};

struct Place {
    int32_t sample, y, x;
};

static BNN_INLINE uint32_t* at(const Image& image, const Place& place) {
    return image.data + place.sample * image.sample + place.y * image.row + place.x * image.column;
}

enum class ChainCode : uint8_t {
    load,       // v = image
    add,        // v = v + low * image
    multiply,   // v = v * image
    gain,       // v = v * image, one number per pixel
    affine,     // v = v * a[c] + b[c]
    clamp,      // v = min(max(v, low), high)
    prelu,      // v = v < 0 ? v * a[c] : v
    exp,        // v = e^v
    sigmoid,    // v = 1 / (1 + e^-v)
    tanh,
    silu,       // v = v * sigmoid(v)
    hardsigmoid,
    hardswish,
    gelu,       // v * Phi(v)
    gelu_tanh,
    sqrt,
    reciprocal,
    abs,
    square,
    store,      // image = v
    encode,     // bits of image: start xor parity of the number of thresholds a[plane][level][c] <= v
    quantize,   // bytes of image: round(v * low) + 128, at most 255, at least 1
};

constexpr int kChainCodes = static_cast<int>(ChainCode::quantize) + 1;

constexpr bool is_written(ChainCode code) { return code >= ChainCode::store; }
constexpr bool is_read(ChainCode code) { return code <= ChainCode::gain; }

struct ChainOp {
    ChainCode code;
    int32_t channels;       // of the image that is written, or of the thresholds
    int32_t planes, levels;  // encode
    const float* a;         // per channel, padded to whole blocks: [blocks][16]
    const float* b;
    const uint16_t* start;  // encode: [planes][blocks]
    float low, high;
    Image image;
};

struct Tile {
    float* data;          // [pixels][row][16], of which the first `blocks` of a row are in use
    const Place* places;  // of the pixels
    int pixels, row;
    int first, blocks;    // the channels begin at block `first`
};

// Runs the operations in order.
using ChainFn = void (*)(const ChainOp* ops, int count, const Tile& tile);

// Accumulators from counts, which are laid out as the tile is; plane after plane is added up.
struct Plane {
    const int32_t* counts;
    const int32_t* const* base;  // per pixel, then per channel
    const float* scale;          // per channel; null for 1
    const float* bias;           // per channel; null for 0
    bool is_mismatch, is_first;
};

// acc = base + counts, or base - 2 counts for mismatches;   v = (is_first ? 0 : v) + acc * scale + bias
using CombineFn = void (*)(const Plane& plane, const Tile& tile);

// The chain that most layers have, in one pass over registers. Which parts there are, a form says:
//
//     v = source * scale[c] + bias[c],   v += factor * operand,   v = activation(v),   stores as floats, as bits, or both
//
// The source are numbers: mismatches m as base - 2 m, products n as base + n, those in the tile, or those of an image.
// Channels come in whole blocks, and in pairs of blocks where there are bits.
enum class Source : uint8_t { mismatches, products, tile, image };
enum class Activation : uint8_t {
    none,
    clamp,  // to [low, high]
    prelu,  // of v * before_a[c] + before_b[c], with after_a and after_b behind it: RPReLU
};
enum class Write : uint8_t {
    floats,
    bits,
    both,
    scaled_bits,  // of v * bits_a[c] + bits_b[c]
    both_scaled,
};

struct Form {
    Source source;
    bool adds;
    Activation activation;
    Write write;

    constexpr int number() const {
        return ((static_cast<int>(source) * 2 + adds) * 3 + static_cast<int>(activation)) * 5 + static_cast<int>(write);
    }
    static constexpr Form of(int number) {
        return {static_cast<Source>(number / 30), number / 15 % 2 == 1, static_cast<Activation>(number / 5 % 3),
                static_cast<Write>(number % 5)};
    }
};

constexpr int kForms = 4 * 2 * 3 * 5;

struct Fused {
    const float *scale, *bias;
    Image source, operand;
    float factor, low, high;
    const float *before_a, *before_b, *slope, *after_a, *after_b;
    Image floats, bits;
    const float *bits_a, *bits_b;
    const float* thresholds;  // one per channel
    const uint16_t* start;    // per block
};

constexpr int kMaxTilePixels = 16;

// Counts and their base, which are laid out as in `Plane`, belong to the first two sources.
using FusedFn = void (*)(const Fused&, const int32_t* counts, const int32_t* const* base, const Tile&);

struct ChainKernel {
    ChainFn run;
    CombineFn combine;
    const FusedFn* fused;  // by the form's number
};

extern const ChainKernel kChainPortable;
#if defined(__x86_64__)
extern const ChainKernel kChainAvx2, kChainAvx512;
#elif defined(__aarch64__)
extern const ChainKernel kChainNeon;
#endif

}  // namespace bnn
