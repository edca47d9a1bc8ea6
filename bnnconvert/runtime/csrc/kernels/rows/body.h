// The row kernels, compiled once per instruction set.
#pragma once

#include <cmath>
#include <utility>

#include "kernels/rows/rows.h"
#include "kernels/vector.h"

namespace bnn {
namespace {

void softmax(float* x, int count, bool logarithm) {
    float largest = x[0];
    for (int i = 1; i < count; i++) largest = x[i] > largest ? x[i] : largest;
    double total = 0;
    for (int i = 0; i < count; i += 16) {
        const int lanes = count - i < 16 ? count - i : 16;
        Floats v = all(largest);
        std::memcpy(&v, x + i, 4 * static_cast<size_t>(lanes));
        const Floats e = exp(v - largest);
        for (int lane = 0; lane < lanes; lane++) total += e[lane];
        store_first(x + i, logarithm ? v - largest : e, lanes);
    }
    const auto scale = static_cast<float>(1 / total), shift = static_cast<float>(std::log(total));
    for (int i = 0; i < count; i++) x[i] = logarithm ? x[i] - shift : x[i] * scale;
}

float sum_of(const Floats& v) {
    float total = 0;
    for (int lane = 0; lane < 16; lane++) total += v[lane];
    return total;
}

void normalize(float* x, int count, float eps) {
    const int whole = count / 16 * 16;
    Floats sums{};
    for (int i = 0; i < whole; i += 16) sums += load(x + i);
    float total = sum_of(sums);
    for (int i = whole; i < count; i++) total += x[i];
    const float mean = total / static_cast<float>(count);
    Floats squares{};
    for (int i = 0; i < whole; i += 16) {
        const Floats v = load(x + i) - mean;
        squares += v * v;
    }
    total = sum_of(squares);
    for (int i = whole; i < count; i++) total += (x[i] - mean) * (x[i] - mean);
    const float scale = 1 / std::sqrt(total / static_cast<float>(count) + eps);
    for (int i = 0; i < whole; i += 16) store(x + i, (load(x + i) - mean) * scale);
    for (int i = whole; i < count; i++) x[i] = (x[i] - mean) * scale;
}

// Where number `lane` of sixteen pixels of three channels comes from: of the first two planes, then with the third one.
constexpr int of_two(int lane) { return lane % 3 == 1 ? 16 + lane / 3 : lane / 3; }
constexpr int of_three(int lane) { return lane % 3 == 2 ? 16 + lane / 3 : lane % 16; }

template <int kPart, int... kLane>
BNN_INLINE Floats three(const Floats& a, const Floats& b, const Floats& c, std::integer_sequence<int, kLane...>) {
    const Floats two = __builtin_shufflevector(a, b, of_two(16 * kPart + kLane)...);
    return __builtin_shufflevector(two, c, of_three(16 * kPart + kLane)...);
}

void interleave(const float* from, int64_t plane, int channels, int pixels, float* to) {
    int done = 0;
    if (channels == 3) {
        constexpr std::make_integer_sequence<int, 16> lanes;
        for (; done + 16 <= pixels; done += 16) {
            const Floats a = load(from + done), b = load(from + plane + done), c = load(from + 2 * plane + done);
            store(to + 3 * done, three<0>(a, b, c, lanes));
            store(to + 3 * done + 16, three<1>(a, b, c, lanes));
            store(to + 3 * done + 32, three<2>(a, b, c, lanes));
        }
    }
    for (int c = 0; c < channels; c++)
        for (int x = done; x < pixels; x++) to[int64_t{x} * channels + c] = from[c * plane + x];
}

void interleave_bytes(const float* from, int64_t plane, int channels, int pixels, float factor, uint32_t* to) {
    const int elements = (channels + 3) / 4;
    for (int e = 0; e < elements; e++)
        for (int x = 0; x < pixels; x += 16) {
            const int count = pixels - x < 16 ? pixels - x : 16;
            Ints word{};
            for (int i = 0; i < 4; i++) {
                Ints bytes = Ints{} + 128;
                if (4 * e + i < channels) {
                    Floats v{};
                    const float* at = from + (4 * e + i) * plane + x;
                    if (count == 16)
                        v = load(at);
                    else
                        std::memcpy(&v, at, sizeof *at * static_cast<size_t>(count));
                    bytes = bytes_of(v, factor);
                }
                word |= bytes << 8 * i;
            }
            if (elements == 1 && count == 16) {
                store(to + x, floats_of(word));
                continue;
            }
            for (int lane = 0; lane < count; lane++)
                to[int64_t{x + lane} * elements + e] = static_cast<uint32_t>(word[lane]);
        }
}

constexpr RowKernels kRows = {softmax, normalize, interleave, interleave_bytes};

}  // namespace
}  // namespace bnn
