// The chain kernel, compiled once per instruction set.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/chain/chain.h"
#include "kernels/vector.h"

namespace bnn {
namespace {

// Tiles and operations are passed by value: stores to floats might otherwise change them as far as a compiler knows,
// and every turn of a loop would read them again.

BNN_INLINE float* vector(Tile tile, int p, int q) { return tile.data + kLanes * (p * tile.row + q); }

// In this order and with these comparisons a NaN stays a NaN.
BNN_INLINE Floats clamp(Floats v, Floats low, Floats high) {
    v = v < low ? low : v;
    return v > high ? high : v;
}

template <class F>
BNN_INLINE void each(Tile tile, F change) {
    for (int p = 0; p < tile.pixels; p++)
        for (int q = 0; q < tile.blocks; q++) {
            float* v = vector(tile, p, q);
            store(v, change(load(v)));
        }
}

template <class F>
BNN_INLINE void each_channel(Tile tile, F change) {
    for (int q = 0; q < tile.blocks; q++)
        for (int p = 0; p < tile.pixels; p++) {
            float* v = vector(tile, p, q);
            store(v, change(load(v), kLanes * (tile.first + q)));
        }
}

template <class F>
BNN_INLINE void with_image(Tile tile, Image image, F change) {
    for (int p = 0; p < tile.pixels; p++) {
        const uint32_t* x = at(image, tile.places[p]) + kLanes * tile.first;
        for (int q = 0; q < tile.blocks; q++) {
            float* v = vector(tile, p, q);
            store(v, change(load(v), load(x + kLanes * q)));
        }
    }
}

BNN_INLINE int lanes_left(const Tile& tile, const ChainOp& op, int q) {
    return op.channels - kLanes * (tile.first + q);
}

BNN_INLINE int blocks_of(const ChainOp& op) { return blocks_for(op.channels); }

BNN_INLINE uint16_t lane_mask(int lanes) { return static_cast<uint16_t>(lanes >= kLanes ? 0xffff : (1u << lanes) - 1); }

void store_image(Tile tile, ChainOp op) {
    const int whole = std::min(tile.blocks, op.channels / kLanes - tile.first);
    for (int p = 0; p < tile.pixels; p++) {
        uint32_t* to = at(op.image, tile.places[p]) + kLanes * tile.first;
        for (int q = 0; q < whole; q++) store(to + kLanes * q, load(vector(tile, p, q)));
        if (whole < tile.blocks) store_first(to + kLanes * whole, load(vector(tile, p, whole)), op.channels % kLanes);
    }
}

// One plane of bits with one threshold per channel, as most layers have.
void encode_signs(Tile tile, ChainOp op) {
    const int blocks = blocks_of(op), real = std::min(tile.blocks, blocks - tile.first);
    const bool ends_in_half = tile.first + real == blocks && blocks % 2;
    const uint16_t last = lane_mask(lanes_left(tile, op, real - 1));
    const float* thresholds = op.a + kLanes * tile.first;
    const uint16_t* start = op.start + tile.first;
    for (int p = 0; p < tile.pixels; p++) {
        uint16_t* to = reinterpret_cast<uint16_t*>(at(op.image, tile.places[p])) + tile.first;
        for (int q = 0; q < real; q++)
            to[q] = start[q] ^ mask_at_least(load(vector(tile, p, q)), load(thresholds + kLanes * q));
        to[real - 1] &= last;
        if (ends_in_half) to[real] = 0;
    }
}

void encode(Tile tile, ChainOp op) {
    if (tile.first >= blocks_of(op)) return;
    if (op.planes == 1 && op.levels == 1) return encode_signs(tile, op);
    const int blocks = blocks_of(op), words = (op.channels + 31) / 32;
    for (int plane = 0; plane < op.planes; plane++)
        for (int q = 0; q < tile.blocks && tile.first + q < blocks; q++) {
            const int block = tile.first + q;
            const uint16_t real = lane_mask(lanes_left(tile, op, q)), start = op.start[plane * blocks + block];
            const float* row = op.a + kLanes * (int64_t{plane} * op.levels * blocks + block);
            for (int p = 0; p < tile.pixels; p++) {
                const Floats v = load(vector(tile, p, q));
                uint16_t bits = start;
                for (int level = 0; level < op.levels; level++)
                    bits ^= mask_at_least(v, load(row + int64_t{level} * blocks * kLanes));
                uint32_t* to = at(op.image, tile.places[p]) + int64_t{plane} * words;
                uint16_t* halves = reinterpret_cast<uint16_t*>(to) + block;
                halves[0] = bits & real;
                if (block + 1 == blocks && blocks % 2) halves[1] = 0;
            }
        }
}

void quantize(Tile tile, ChainOp op) {
    for (int p = 0; p < tile.pixels; p++) {
        uint8_t* to = reinterpret_cast<uint8_t*>(at(op.image, tile.places[p])) + kLanes * tile.first;
        for (int q = 0; q < tile.blocks; q++) {
            int lanes = lanes_left(tile, op, q);
            if (lanes <= 0) break;
            const Ints bytes = bytes_of(load(vector(tile, p, q)), op.low);
            if (lanes > kLanes) lanes = kLanes;
            for (int i = 0; i < lanes; i++) to[kLanes * q + i] = static_cast<uint8_t>(bytes[i]);
            for (int i = lanes; i % 4; i++) to[kLanes * q + i] = 128;
        }
    }
}

void run_one(ChainOp op, Tile tile) {
    const Floats low = all(op.low), high = all(op.high);
    const float *a = op.a, *b = op.b;
    switch (op.code) {
        case ChainCode::load: return with_image(tile, op.image, [](Floats, Floats x) { return x; });
        case ChainCode::add: return with_image(tile, op.image, [=](Floats v, Floats x) { return v + low * x; });
        case ChainCode::multiply: return with_image(tile, op.image, [](Floats v, Floats x) { return v * x; });
        case ChainCode::gain:
            for (int p = 0; p < tile.pixels; p++) {
                float gain;
                std::memcpy(&gain, at(op.image, tile.places[p]), sizeof gain);
                for (int q = 0; q < tile.blocks; q++) store(vector(tile, p, q), load(vector(tile, p, q)) * gain);
            }
            return;
        case ChainCode::affine:
            return each_channel(tile, [=](Floats v, int c) { return v * load(a + c) + load(b + c); });
        case ChainCode::clamp:
            return each(tile, [=](Floats v) { return clamp(v, low, high); });
        case ChainCode::prelu:
            return each_channel(tile, [=](Floats v, int c) { return v < 0.0f ? v * load(a + c) : v; });
        case ChainCode::exp: return each(tile, [](Floats v) { return exp(v); });
        case ChainCode::sigmoid: return each(tile, [](Floats v) { return sigmoid(v); });
        case ChainCode::tanh: return each(tile, [](Floats v) { return tanh(v); });
        case ChainCode::silu: return each(tile, [](Floats v) { return v * sigmoid(v); });
        case ChainCode::hardsigmoid:
            return each(tile, [](Floats v) { return clamp(v + 3.0f, all(0.0f), all(6.0f)) / 6.0f; });
        case ChainCode::hardswish:
            return each(tile, [](Floats v) { return v * clamp(v + 3.0f, all(0.0f), all(6.0f)) / 6.0f; });
        case ChainCode::gelu:
            return each(tile, [](Floats v) { return 0.5f * v * (1.0f + erf(v * 0.70710678f)); });
        case ChainCode::gelu_tanh:
            return each(tile, [](Floats v) {
                return 0.5f * v * (1.0f + tanh(0.79788456f * (v + 0.044715f * v * v * v)));
            });
        case ChainCode::sqrt:
            return each(tile, [](Floats v) {
                Floats y{};
                for (int i = 0; i < kLanes; i++) y[i] = std::sqrt(v[i]);
                return y;
            });
        case ChainCode::reciprocal: return each(tile, [](Floats v) { return 1.0f / v; });
        case ChainCode::abs: return each(tile, [](Floats v) { return floats_of(bits_of(v) & 0x7fffffff); });
        case ChainCode::square: return each(tile, [](Floats v) { return v * v; });
        case ChainCode::store: return store_image(tile, op);
        case ChainCode::encode: return encode(tile, op);
        case ChainCode::quantize: return quantize(tile, op);
    }
}

void run_chain(const ChainOp* ops, int count, const Tile& tile) {
    for (int i = 0; i < count; i++) run_one(ops[i], tile);
}

template <class F>
BNN_INLINE void combine_with(Plane plane, Tile tile, F accumulator) {
    const int first = kLanes * tile.first;
    const float* scale = plane.scale ? plane.scale + first : nullptr;
    const float* bias = plane.bias ? plane.bias + first : nullptr;
    for (int p = 0; p < tile.pixels; p++) {
        const int32_t* base = plane.base[p] + first;
        for (int q = 0; q < tile.blocks; q++) {
            const int c = kLanes * q;
            const Ints counts = load_ints(plane.counts + kLanes * p * tile.row + c);
            Floats v = __builtin_convertvector(accumulator(load_ints(base + c), counts), Floats);
            if (scale) v = v * load(scale + c);
            if (bias) v = v + load(bias + c);
            float* to = vector(tile, p, q);
            store(to, plane.is_first ? v : load(to) + v);
        }
    }
}

void combine(const Plane& plane, const Tile& tile) {
    if (plane.is_mismatch)
        combine_with(plane, tile, [](Ints base, Ints counts) { return base - counts - counts; });
    else
        combine_with(plane, tile, [](Ints base, Ints counts) { return base + counts; });
}

template <int kNumber>
void run_fused(const Fused& from, const int32_t* counts, const int32_t* const* base, const Tile& whole) {
    constexpr Form form = Form::of(kNumber);
    constexpr bool counted = form.source == Source::mismatches || form.source == Source::products;
    constexpr bool scales_bits = form.write == Write::scaled_bits || form.write == Write::both_scaled;
    constexpr bool writes_floats = form.write != Write::bits && form.write != Write::scaled_bits;
    constexpr bool writes_bits = form.write != Write::floats;
    const Fused f = from;
    const Tile tile = whole;
    const int first = kLanes * tile.first, end = kLanes * tile.blocks;
    const float *scale = f.scale + first, *bias = f.bias + first, *thresholds = f.thresholds + first;
    const uint16_t* start = f.start + tile.first;
    for (int p = 0; p < tile.pixels; p++) {
        const Place place = tile.places[p];
        const void* source = tile.data + int64_t{p} * tile.row * kLanes;
        if constexpr (form.source == Source::image) source = at(f.source, place) + first;
        if constexpr (counted) source = counts + int64_t{p} * tile.row * kLanes;
        const int32_t* zero = counted ? base[p] + first : nullptr;
        const uint32_t* operand = form.adds ? at(f.operand, place) + first : nullptr;
        uint32_t* floats = writes_floats ? at(f.floats, place) + first : nullptr;
        uint16_t* bits = writes_bits ? reinterpret_cast<uint16_t*>(at(f.bits, place)) + tile.first : nullptr;
        for (int c = 0; c < end; c += kLanes) {
            Floats v;
            if constexpr (counted) {
                const Ints n = load_ints(static_cast<const int32_t*>(source) + c), z = load_ints(zero + c);
                v = __builtin_convertvector(form.source == Source::mismatches ? z - n - n : z + n, Floats);
            } else {
                v = load(static_cast<const float*>(source) + c);
            }
            v = v * load(scale + c) + load(bias + c);
            if constexpr (form.adds) v = v + f.factor * load(operand + c);
            if constexpr (form.activation == Activation::clamp) v = clamp(v, all(f.low), all(f.high));
            if constexpr (form.activation == Activation::prelu) {
                v = v * load(f.before_a + first + c) + load(f.before_b + first + c);
                v = v < 0.0f ? v * load(f.slope + first + c) : v;
                v = v * load(f.after_a + first + c) + load(f.after_b + first + c);
            }
            if constexpr (writes_floats) store(floats + c, v);
            if constexpr (scales_bits) v = v * load(f.bits_a + first + c) + load(f.bits_b + first + c);
            if constexpr (writes_bits) bits[c / kLanes] = start[c / kLanes] ^ mask_at_least(v, load(thresholds + c));
        }
    }
}

template <int... kNumbers>
struct FusedTable {
    static constexpr FusedFn rows[] = {run_fused<kNumbers>...};
};

template <int... kNumbers>
constexpr const FusedFn* fused_table(std::integer_sequence<int, kNumbers...>) {
    return FusedTable<kNumbers...>::rows;
}

constexpr ChainKernel kChain = {run_chain, combine, fused_table(std::make_integer_sequence<int, kForms>{})};

}  // namespace
}  // namespace bnn
