// Attention of one head: some queries against all keys.
//
//     out[i] = sum over j of p[i][j] v[j],   p[i] = softmax over j of scale q[i] . k[j]
//
// Keys are laid out in columns first, so that a vector holds the products of one query with sixteen of them.
#pragma once

#include <cstdint>

#include "kernels/chain/chain.h"

namespace bnn {

constexpr int kQueriesAtOnce = 4;

struct AttentionHead {
    const float *q, *k, *v;                // of the first token
    float* out;
    int64_t q_row, k_row, v_row, out_row;  // numbers from one token to the next
    int keys, size, value_size;
    float scale;
    float* scratch;                        // attention_scratch(keys, size) numbers
};

// Numbers: the keys in columns, and the scores of a few queries.
constexpr int64_t attention_scratch(int keys, int size) {
    return (int64_t{size} + kQueriesAtOnce) * blocks_for(keys) * kLanes;
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
