// Attention of one head: some queries against all keys.
//
//     out[i] = sum over j of p[i][j] v[j],   p[i] = softmax over j of scale q[i] . k[j]
//
// Keys are laid out in columns first, so that a vector holds the products of one query with sixteen of them.
//
// By signs, with a[i] = mean |q[i]| and b[j] = mean |k[j]|, the scores are
//
//     s[i][j] = (sign q[i] . sign k[j]) (a[i] (b[j] scale))
//
// and with Signs::both  out[i] = mean |v| (sum over j of c[i][j] sign v[j]) / (sum over j of c[i][j]),  c = s >= 0.
#pragma once

#include <cstdint>

#include "kernels/chain/chain.h"

namespace bnn {

constexpr int kQueriesAtOnce = 4;

enum class Signs : uint8_t { none, scores, both };

struct AttentionHead {
    const float *q, *k, *v;                // of the first token
    float* out;
    int64_t q_row, k_row, v_row, out_row;  // numbers from one token to the next
    int keys, size, value_size;
    float scale;
    Signs signs;
    float* scratch;                        // attention_scratch(...) numbers
};

constexpr int64_t padded_to_lanes(int count) { return int64_t{blocks_for(count)} * kLanes; }
constexpr int64_t words_of(int bits) { return (int64_t{bits} + 31) / 32; }

// Numbers of four bytes: the scores of a few queries and, in columns, the keys; by signs their bits and scales, the bits
// of those queries, and the bits of the values.
constexpr int64_t attention_scratch(int keys, int size, int value_size, Signs signs) {
    const int64_t padded = padded_to_lanes(keys), scores = kQueriesAtOnce * padded;
    if (signs == Signs::none) return scores + size * padded;
    const int64_t values = signs == Signs::both ? words_of(keys) * padded_to_lanes(value_size) : 0;
    return scores + words_of(size) * (padded + kQueriesAtOnce) + padded + values;
}

// For the queries [begin, end).
using AttentionFn = void (*)(const AttentionHead& head, int begin, int end);

extern const AttentionFn kAttentionPortable;
#if defined(__x86_64__)
extern const AttentionFn kAttentionAvx2, kAttentionAvx512;
#elif defined(__aarch64__)
extern const AttentionFn kAttentionNeon;
#endif

}  // namespace bnn
