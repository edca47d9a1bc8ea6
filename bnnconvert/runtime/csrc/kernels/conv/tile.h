// The loops of a tile, included by one file per instruction set. What an instruction set brings is a class D:
//
//     Sum, Weights                   accumulators and weights of 16 lanes
//     zero() -> Sum
//     load(w) -> Weights
//     add(sum, x, weights)           sum += dot(*x, weights)
//     kSteps, settle(sum)            settle after at most kSteps additions; 0 where there is nothing to settle
//     store(sum, out)                16 numbers
//     at_most(sum, limits) -> bits   binary only
//
// Everything is in an anonymous namespace: a template compiled with wide instructions must not be the one that the
// linker keeps for other files.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels/conv/conv.h"
#include "kernels/inline.h"

#define BNN_INLINE_LAMBDA __attribute__((always_inline))

namespace bnn {
namespace {

// f(0), f(1), ... with constants: an array that is indexed by nothing else lives in registers, loops around assembly
// or not.
template <class F, int... kNumbers>
BNN_INLINE void unrolled(F f, std::integer_sequence<int, kNumbers...>) {
    (f(std::integral_constant<int, kNumbers>{}), ...);
}

template <int kCount, class F>
BNN_INLINE void unrolled(F f) {
    unrolled(f, std::make_integer_sequence<int, kCount>{});
}

template <class D, int P, int Q>
BNN_INLINE void multiply(const Window& window, const uint32_t* w, typename D::Sum (&sum)[P][Q]) {
    for (int p = 0; p < P; p++)
        for (int q = 0; q < Q; q++) sum[p][q] = D::zero();
    int room = D::kSteps;  // additions until the sums have to be settled
    for (int r = 0; r < window.run_count; r++) {
        const uint32_t* x[P];
        for (int p = 0; p < P; p++) x[p] = window.pixels[p] + window.runs[r];
        for (int begin = 0; begin < window.run_length;) {
            int end = window.run_length;
            if (D::kSteps && end - begin > room) end = begin + room;
            for (int k = begin; k < end; k++, w += kLanes * Q) {
                typename D::Weights weights[Q];
                for (int q = 0; q < Q; q++) weights[q] = D::load(w + kLanes * q);
                for (int p = 0; p < P; p++)
                    for (int q = 0; q < Q; q++) D::add(sum[p][q], x[p] + k, weights[q]);
            }
            room -= end - begin;
            begin = end;
            if (!D::kSteps || room > 0) continue;
            room = D::kSteps;
            for (int p = 0; p < P; p++)
                for (int q = 0; q < Q; q++) D::settle(sum[p][q]);
        }
    }
    if (D::kSteps)
        for (int p = 0; p < P; p++)
            for (int q = 0; q < Q; q++) D::settle(sum[p][q]);
}

// `rounds` rounds of the binary dot on registers and the first-level cache, with nothing around it; returns how many
// multiply-adds that was. What a core can do without carry-save.
template <class D, int kSums>
int64_t spin(int64_t rounds) {
    alignas(64) static const uint32_t numbers[kSums + kLanes] = {};
    const uint32_t* x = numbers;
    typename D::Sum sum[kSums];
    for (int i = 0; i < kSums; i++) sum[i] = D::zero();
    __asm__ volatile("" : "+r"(x));  // so that nothing is known of what it points to
    const typename D::Weights w = D::load(x);
    for (int64_t r = 0; r < rounds; r++) {
        __asm__ volatile("" : "+r"(x));
        for (int i = 0; i < kSums; i++) D::add(sum[i], x + i, w);
        if (D::kSteps && r % D::kSteps == D::kSteps - 1)
            for (int i = 0; i < kSums; i++) D::settle(sum[i]);
    }
    uint32_t out[kSums][kLanes];
    for (int i = 0; i < kSums; i++) D::store(sum[i], out[i]);
    __asm__ volatile("" : : "m"(out));
    return rounds * kSums * kLanes * 32;
}

template <class D, int P, int Q>
void accumulate(const Window& window, const uint32_t* w, void* out) {
    typename D::Sum sum[P][Q];
    multiply<D, P, Q>(window, w, sum);
    for (int p = 0; p < P; p++)
        for (int q = 0; q < Q; q++) D::store(sum[p][q], static_cast<uint32_t*>(out) + kLanes * (p * Q + q));
}

template <class D, int P, int Q>
void threshold(const Window& window, const uint32_t* w, const int32_t* const* limits, uint16_t* const* bits) {
    typename D::Sum sum[P][Q];
    multiply<D, P, Q>(window, w, sum);
    for (int p = 0; p < P; p++)
        for (int q = 0; q < Q; q++) bits[p][q] = D::at_most(sum[p][q], limits[p] + kLanes * q);
}

template <class D, int P, int Q>
constexpr ConvTile binary_tile(const char* name) {
    static_assert(P <= kMaxTilePixels && Q <= kMaxTileBlocks);
    return {Dot::binary, name, P, Q, accumulate<D, P, Q>, threshold<D, P, Q>};
}

template <class D, int P, int Q>
constexpr ConvTile float_tile(const char* name) {
    static_assert(P <= kMaxTilePixels && Q <= kMaxTileBlocks);
    return {Dot::float32, name, P, Q, accumulate<D, P, Q>, nullptr};
}

template <class D, int P, int Q>
constexpr ConvTile byte_tile(const char* name) {
    static_assert(P <= kMaxTilePixels && Q <= kMaxTileBlocks);
    return {Dot::bytes, name, P, Q, accumulate<D, P, Q>, nullptr};
}

// A tile of signs from a class that adds the 32 inputs of a word to the sums of all of its blocks.
template <class D, int P, int Q>
void accumulate_signs(const Window& window, const uint32_t* w, void* out) {
    typename D::Sum sum[P][Q];
    for (int p = 0; p < P; p++)
        for (int q = 0; q < Q; q++) sum[p][q] = D::zero();
    for (int r = 0; r < window.run_count; r++)
        for (int k = 0; k < window.run_length; k += 32, w += kLanes * Q) {
            const float* x[P];
            alignas(64) float last[P][32] = {};
            for (int p = 0; p < P; p++) {
                x[p] = reinterpret_cast<const float*>(window.pixels[p] + window.runs[r] + k);
                if (window.run_length - k >= 32) continue;
                std::memcpy(last[p], x[p], sizeof(float) * static_cast<size_t>(window.run_length - k));
                x[p] = last[p];
            }
            D::template add<P, Q>(sum, x, w);
        }
    for (int p = 0; p < P; p++)
        for (int q = 0; q < Q; q++) D::store(sum[p][q], static_cast<uint32_t*>(out) + kLanes * (p * Q + q));
}

template <class D, int P, int Q>
constexpr ConvTile signs_tile(const char* name) {
    return {Dot::signs, name, P, Q, accumulate_signs<D, P, Q>, nullptr};
}

// One float times 16 weights, as vectors of the compiler: it splits them into what the machine has.
struct FloatDot {
    typedef float Sum __attribute__((vector_size(64)));
    typedef float Weights __attribute__((vector_size(64)));
    typedef float Unaligned __attribute__((vector_size(64), aligned(4)));
    static constexpr int kSteps = 0;
    static BNN_INLINE Sum zero() { return Sum{}; }
    static BNN_INLINE Weights load(const uint32_t* w) { return *reinterpret_cast<const Weights*>(w); }
    static BNN_INLINE void add(Sum& sum, const uint32_t* x, const Weights& w) {
        sum += *reinterpret_cast<const float*>(x) * w;
    }
    static BNN_INLINE void settle(Sum&) {}
    static BNN_INLINE void store(const Sum& sum, void* out) { *static_cast<Unaligned*>(out) = sum; }
};

}  // namespace
}  // namespace bnn
