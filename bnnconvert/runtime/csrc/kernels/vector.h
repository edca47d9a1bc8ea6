// Sixteen floats as a vector of the compiler, split into the registers that the machine has.
//
// Included by files that are compiled once per instruction set, so everything is in an anonymous namespace.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "kernels/inline.h"

namespace bnn {
namespace {

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));

BNN_INLINE Floats load(const void* from) {
    Floats v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}

BNN_INLINE Ints load_ints(const void* from) {
    Ints v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}

BNN_INLINE void store(void* to, const Floats& v) { __builtin_memcpy(to, &v, sizeof v); }

BNN_INLINE void store_ints(void* to, const Ints& v) { __builtin_memcpy(to, &v, sizeof v); }

BNN_INLINE void store_first(void* to, const Floats& v, int lanes) {
    if (lanes >= 16)
        store(to, v);
    else
        std::memcpy(to, &v, 4 * static_cast<size_t>(lanes));
}

BNN_INLINE Floats all(float x) { return Floats{} + x; }

BNN_INLINE Ints bits_of(const Floats& v) {
    Ints i;
    __builtin_memcpy(&i, &v, sizeof v);
    return i;
}

BNN_INLINE Floats floats_of(const Ints& i) {
    Floats v;
    __builtin_memcpy(&v, &i, sizeof v);
    return v;
}

BNN_INLINE Floats max(const Floats& a, const Floats& b) { return a > b ? a : b; }
BNN_INLINE Floats min(const Floats& a, const Floats& b) { return a < b ? a : b; }

// Of each lane.
BNN_INLINE Ints popcount(const Ints& v) {
#if defined(__AVX512F__)
    return (Ints)_mm512_popcnt_epi32((__m512i)v);
#else
    typedef uint32_t Words __attribute__((vector_size(64)));
    Words x;
    __builtin_memcpy(&x, &v, sizeof x);
    x = x - (x >> 1 & 0x55555555u);
    x = (x & 0x33333333u) + (x >> 2 & 0x33333333u);
    x = ((x + (x >> 4)) & 0x0f0f0f0fu) * 0x01010101u >> 24;
    return __builtin_convertvector(x, Ints);
#endif
}

// round(v * factor) + 128, ties to even, from 1 to 255; 255 for a NaN.
BNN_INLINE Ints bytes_of(const Floats& v, float factor) {
    const Floats x = max(min(v * factor, all(127.0f)), all(-127.0f));
    const Floats magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    return __builtin_convertvector((x + magic) - magic, Ints) + 128;
}

// Bit i is set where a[i] >= b[i]; never where one of them is a NaN.
BNN_INLINE uint16_t mask_at_least(const Floats& a, const Floats& b) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ);
#else
    const Ints holds = a >= b;
#if defined(__AVX2__)
    __m256 half[2];
    __builtin_memcpy(half, &holds, sizeof half);
    return static_cast<uint16_t>(_mm256_movemask_ps(half[0]) | _mm256_movemask_ps(half[1]) << 8);
#elif defined(__aarch64__)
    const uint32x4_t place = {1, 2, 4, 8};
    uint32x4_t part[4];
    __builtin_memcpy(part, &holds, sizeof part);
    unsigned mask = 0;
    for (int i = 0; i < 4; i++) mask |= vaddvq_u32(vandq_u32(part[i], place)) << 4 * i;
    return static_cast<uint16_t>(mask);
#else
    unsigned mask = 0;
    for (int i = 0; i < 16; i++) mask |= (holds[i] & 1u) << i;
    return static_cast<uint16_t>(mask);
#endif
#endif
}

// e^v to about two units in the last place; 0 below about -103, infinity above 88.7.
BNN_INLINE Floats exp(const Floats& v) {
    const Floats x = max(min(v, all(89.0f)), all(-104.0f));
    const Floats magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const Floats n = (x * 1.44269504f + magic) - magic;
    const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    // In two factors, so that results near the ends of the range are right.
    const Ints k = __builtin_convertvector(n, Ints), half = k >> 1;
    const Floats y = p * floats_of((half + 127) << 23) * floats_of((k - half + 127) << 23);
    return v == v ? y : v;
}

BNN_INLINE Floats sigmoid(const Floats& v) { return 1.0f / (1.0f + exp(-v)); }

BNN_INLINE Floats tanh(const Floats& v) {
    const Floats magnitude = floats_of(bits_of(v) & 0x7fffffff);
    const Floats e = exp(-2.0f * magnitude);
    const Floats large = (1.0f - e) / (1.0f + e);
    const Floats square = v * v;  // the quotient loses digits near zero
    const Floats small = magnitude * (1.0f + square * (-0.333332f + square * (0.133314f - square * 0.0535f)));
    const Floats y = magnitude < all(0.1f) ? small : large;
    return floats_of(bits_of(y) | (bits_of(v) & INT32_MIN));
}

// x P(x^2) / Q(x^2) up to 3.92, where erf is 1 within rounding; fitted for the least largest error, which is 2e-8 before
// rounding and 3e-7 with it.
BNN_INLINE Floats erf(const Floats& v) {
    const Floats x = min(floats_of(bits_of(v) & 0x7fffffff), all(3.92f)), t = x * x;
    Floats p = all(2.0347295e-6f), q = all(3.8070550e-5f);
    p = p * t + 2.8747870e-4f, q = q * t + 1.1881121e-3f;
    p = p * t + 3.8683189e-3f, q = q * t + 1.5172279e-2f;
    p = p * t + 5.3060453e-2f, q = q * t + 1.1508456e-1f;
    p = p * t + 1.9276394e-1f, q = q * t + 5.0416428e-1f;
    p = p * t + 1.1283790f, q = q * t + 1.0f;
    const Floats y = min(x * p / q, all(1.0f));
    return v == v ? floats_of(bits_of(y) | (bits_of(v) & INT32_MIN)) : v;
}

}  // namespace
}  // namespace bnn
