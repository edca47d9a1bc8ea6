// The attention kernel, compiled once per instruction set.
#pragma once

#include <type_traits>

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

// Softmax over the scores, and the values by it.
template <int kQueries>
void mix_all(const AttentionHead& head, float* scores, int64_t padded, float* out) {
    float factors[kQueries];
    for (int i = 0; i < kQueries; i++) factors[i] = 1 / weigh(scores + i * padded, head.keys, padded);
    int d = 0;
    for (; d + kAtOnce * kLanes <= head.value_size; d += kAtOnce * kLanes)
        mix<kQueries, kAtOnce>(head, scores, factors, padded, d, out);
    for (; d < head.value_size; d += kLanes) mix<kQueries, 1>(head, scores, factors, padded, d, out);
}

template <int kQueries>
void attend_to(const AttentionHead& head, int query, int64_t padded) {
    float* scores = head.scratch + head.size * padded;
    const float* q = head.q + query * head.q_row;
    int64_t j = 0;
    for (; j + kAtOnce * kLanes <= padded; j += kAtOnce * kLanes) score<kQueries, kAtOnce>(head, q, padded, j, scores);
    for (; j < padded; j += kLanes) score<kQueries, 1>(head, q, padded, j, scores);
    mix_all<kQueries>(head, scores, padded, head.out + query * head.out_row);
}

// Calls `each(how many, first)`, the number being a constant.
template <class F>
void each_query(int begin, int end, F&& each) {
    int query = begin;
    for (; query + kQueriesAtOnce <= end; query += kQueriesAtOnce)
        each(std::integral_constant<int, kQueriesAtOnce>{}, query);
    for (; query < end; query++) each(std::integral_constant<int, 1>{}, query);
}

// A set bit for each of the first numbers, at most 32, that is at least 0.
BNN_INLINE uint32_t signs_of(const float* x, int64_t count) {
    uint64_t word = mask_at_least(load(x), Floats{});
    if (count > kLanes) word |= uint64_t{mask_at_least(load(x + kLanes), Floats{})} << kLanes;
    return static_cast<uint32_t>(count < 32 ? word & ((uint64_t{1} << count) - 1) : word);
}

float mean_magnitude(const float* x, int count) {
    Floats sums{};
    int d = 0;
    for (; d + kLanes <= count; d += kLanes) sums += floats_of(bits_of(load(x + d)) & 0x7fffffff);
    float total = 0;
    for (int lane = 0; lane < kLanes; lane++) total += sums[lane];
    for (; d < count; d++) total += x[d] < 0 ? -x[d] : x[d];
    return total / static_cast<float>(count);
}

// The scratch of attention by signs. Words stand where floats do, four bytes each.
class BySigns {
  public:
    explicit BySigns(const AttentionHead& head)
        : head_(head), padded_(padded_to_lanes(head.keys)), channels_(padded_to_lanes(head.value_size)),
          words_(words_of(head.size)), scores_(head.scratch), scales_(scores_ + kQueriesAtOnce * padded_),
          keys_(scales_ + padded_), queries_(keys_ + words_ * padded_), values_(queries_ + kQueriesAtOnce * words_) {
        lay_out_keys();
        if (head.signs == Signs::both) lay_out_values();
    }

    template <int kQueries>
    void attend_to(int query) const {
        score<kQueries>(head_.q + query * head_.q_row);
        float* out = head_.out + query * head_.out_row;
        if (head_.signs == Signs::both) {
            for (int i = 0; i < kQueries; i++) choose(scores_ + i * padded_, out + i * head_.out_row);
        } else {
            mix_all<kQueries>(head_, scores_, padded_, out);
        }
    }

  private:
    static void put(float* to, uint32_t word) { std::memcpy(to, &word, sizeof word); }
    static Ints word_at(const float* from) {
        int32_t word;
        std::memcpy(&word, from, sizeof word);
        return Ints{} + word;
    }

    void lay_out_keys() const {
        for (int64_t j = 0; j < padded_; j++) {
            const bool is_key = j < head_.keys;
            const float* row = head_.k + j * head_.k_row;
            scales_[j] = is_key ? mean_magnitude(row, head_.size) * head_.scale : 0;
            for (int64_t w = 0; w < words_; w++)
                put(keys_ + w * padded_ + j, is_key ? signs_of(row + 32 * w, head_.size - 32 * w) : 0);
        }
    }

    void lay_out_values() {
        magnitude_ = 0;
        for (int64_t j = 0; j < head_.keys; j++) magnitude_ += mean_magnitude(head_.v + j * head_.v_row, head_.value_size);
        magnitude_ /= static_cast<float>(head_.keys);
        for (int64_t first = 0; first < head_.keys; first += 32)
            for (int64_t c = 0; c < channels_; c += kLanes) {
                Ints word{};
                for (int64_t j = first; j < head_.keys && j < first + 32; j++)
                    word |= (load(head_.v + j * head_.v_row + c) >= Floats{}) & static_cast<int32_t>(1u << (j - first));
                store_ints(values_ + first / 32 * channels_ + c, word);
            }
    }

    template <int kQueries>
    void score(const float* q) const {
        float magnitudes[kQueries];
        for (int i = 0; i < kQueries; i++) {
            const float* row = q + i * head_.q_row;
            magnitudes[i] = mean_magnitude(row, head_.size);
            for (int64_t w = 0; w < words_; w++)
                put(queries_ + w * kQueriesAtOnce + i, signs_of(row + 32 * w, head_.size - 32 * w));
        }
        for (int64_t j = 0; j < padded_; j += kLanes) {
            Ints apart[kQueries] = {};
            for (int64_t w = 0; w < words_; w++) {
                const Ints keys = load_ints(keys_ + w * padded_ + j);
                for (int i = 0; i < kQueries; i++)
                    apart[i] += popcount(keys ^ word_at(queries_ + w * kQueriesAtOnce + i));
            }
            for (int i = 0; i < kQueries; i++)
                store(scores_ + i * padded_ + j, __builtin_convertvector(head_.size - 2 * apart[i], Floats) *
                                                     (load(scales_ + j) * magnitudes[i]));
        }
    }

    // The mean of the signs of the values whose score is at least 0; their words take the place of the scores.
    void choose(float* scores, float* out) const {
        const int64_t words = words_of(head_.keys);
        int number = 0;
        for (int64_t w = 0; w < words; w++) {
            const uint32_t chosen = signs_of(scores + 32 * w, head_.keys - 32 * w);
            number += __builtin_popcount(chosen);
            put(scores + w, chosen);
        }
        for (int64_t c = 0; c < channels_; c += kLanes) {
            Ints ones{};
            for (int64_t w = 0; w < words; w++)
                ones += popcount(load_ints(values_ + w * channels_ + c) & word_at(scores + w));
            const Floats sums = __builtin_convertvector(2 * ones - number, Floats);
            store_first(out + c, sums / static_cast<float>(number > 1 ? number : 1) * magnitude_,
                        head_.value_size - static_cast<int>(c));
        }
    }

    const AttentionHead& head_;
    int64_t padded_, channels_, words_;
    float *scores_, *scales_, *keys_, *queries_, *values_;
    float magnitude_ = 0;
};

void attend(const AttentionHead& head, int begin, int end) {
    if (head.signs != Signs::none) {
        const BySigns by_signs(head);
        each_query(begin, end, [&](auto many, int query) { by_signs.attend_to<many>(query); });
        return;
    }
    const int64_t padded = padded_to_lanes(head.keys);
    lay_out_keys(head, padded);
    each_query(begin, end, [&](auto many, int query) { attend_to<many>(head, query, padded); });
}

}  // namespace
}  // namespace bnn
