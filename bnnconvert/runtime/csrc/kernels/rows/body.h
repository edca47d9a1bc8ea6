// The row kernels, compiled once per instruction set.
#pragma once

#include <cmath>

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

// Lanes of the vector number `part` of sixteen pixels of three channels: where the first two planes and the third one go.
struct Threes {
    Ints first_two, third;
};

constexpr Threes threes(int part) {
    Threes masks{};
    for (int lane = 0; lane < 16; lane++) {
        const int pixel = (16 * part + lane) / 3, channel = (16 * part + lane) % 3;
        masks.first_two[lane] = channel == 1 ? 16 + pixel : pixel;
        masks.third[lane] = channel == 2 ? 16 + pixel : lane;
    }
    return masks;
}

void interleave(const float* from, int64_t plane, int channels, int pixels, float* to) {
    int done = 0;
    if (channels == 3) {
        static const Threes masks[3] = {threes(0), threes(1), threes(2)};
        for (; done + 16 <= pixels; done += 16) {
            const Floats a = load(from + done), b = load(from + plane + done), c = load(from + 2 * plane + done);
            for (int part = 0; part < 3; part++)
                store(to + 3 * done + 16 * part,
                      __builtin_shuffle(__builtin_shuffle(a, b, masks[part].first_two), c, masks[part].third));
        }
    }
    for (int c = 0; c < channels; c++)
        for (int x = done; x < pixels; x++) to[int64_t{x} * channels + c] = from[c * plane + x];
}

}  // namespace
}  // namespace bnn
