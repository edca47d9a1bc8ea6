// The attention kernel, compiled once per instruction set.
#pragma once

#include "kernels/attention/attention.h"
#include "kernels/vector.h"

namespace bnn {
namespace {

// columns[d][j] = k[j][d], with zeros behind the last key.
void lay_out_keys(const AttentionHead& head, int64_t padded) {
    for (int64_t d = 0; d < head.size; d++) {
        float* column = head.scratch + d * padded;
        for (int64_t j = 0; j < head.keys; j++) column[j] = head.k[j * head.k_row + d];
        for (int64_t j = head.keys; j < padded; j++) column[j] = 0;
    }
}

template <int kQueries, int kVectors>
BNN_INLINE void score(const AttentionHead& head, const float* q, int64_t padded, int64_t j, float* scores) {
    Floats sums[kQueries][kVectors] = {};
    for (int64_t d = 0; d < head.size; d++)
        for (int b = 0; b < kVectors; b++) {
            const Floats keys = load(head.scratch + d * padded + j + kLanes * b);
            for (int i = 0; i < kQueries; i++) sums[i][b] += keys * q[i * head.q_row + d];
        }
    for (int i = 0; i < kQueries; i++)
        for (int b = 0; b < kVectors; b++) store(scores + i * padded + j + kLanes * b, sums[i][b] * head.scale);
}

// e^(x - largest) in place, zeros behind the last key; the sum.
float weigh(float* x, int keys, int64_t padded) {
    float largest = x[0], total = 0;
    for (int j = 1; j < keys; j++) largest = x[j] > largest ? x[j] : largest;
    for (int64_t j = 0; j < padded; j += kLanes) store(x + j, exp(load(x + j) - largest));
    for (int64_t j = keys; j < padded; j++) x[j] = 0;
    Floats sums{};
    for (int64_t j = 0; j < padded; j += kLanes) sums += load(x + j);
    for (int lane = 0; lane < kLanes; lane++) total += sums[lane];
    return total;
}

template <int kQueries, int kVectors>
BNN_INLINE void mix(const AttentionHead& head, const float* scores, const float* factors, int64_t padded, int d,
                    float* out) {
    Floats sums[kQueries][kVectors] = {};
    for (int64_t j = 0; j < head.keys; j++)
        for (int b = 0; b < kVectors; b++) {
            const Floats values = load(head.v + j * head.v_row + d + kLanes * b);
            for (int i = 0; i < kQueries; i++) sums[i][b] += values * scores[i * padded + j];
        }
    for (int i = 0; i < kQueries; i++)
        for (int b = 0; b < kVectors; b++)
            store_first(out + i * head.out_row + d + kLanes * b, sums[i][b] * factors[i],
                        head.value_size - d - kLanes * b);
}

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kAtOnce = 4;
#else
constexpr int kAtOnce = 1;  // sixteen lanes are two registers
#endif

template <int kQueries>
void attend_to(const AttentionHead& head, int query, int64_t padded) {
    float* scores = head.scratch + head.size * padded;
    const float* q = head.q + query * head.q_row;
    int64_t j = 0;
    for (; j + kAtOnce * kLanes <= padded; j += kAtOnce * kLanes) score<kQueries, kAtOnce>(head, q, padded, j, scores);
    for (; j < padded; j += kLanes) score<kQueries, 1>(head, q, padded, j, scores);
    float factors[kQueries];
    for (int i = 0; i < kQueries; i++) factors[i] = 1 / weigh(scores + i * padded, head.keys, padded);
    float* out = head.out + query * head.out_row;
    int d = 0;
    for (; d + kAtOnce * kLanes <= head.value_size; d += kAtOnce * kLanes)
        mix<kQueries, kAtOnce>(head, scores, factors, padded, d, out);
    for (; d < head.value_size; d += kLanes) mix<kQueries, 1>(head, scores, factors, padded, d, out);
}

void attend(const AttentionHead& head, int begin, int end) {
    const int64_t padded = int64_t{blocks_for(head.keys)} * kLanes;
    lay_out_keys(head, padded);
    int query = begin;
    for (; query + kQueriesAtOnce <= end; query += kQueriesAtOnce) attend_to<kQueriesAtOnce>(head, query, padded);
    for (; query < end; query++) attend_to<1>(head, query, padded);
}

}  // namespace
}  // namespace bnn
