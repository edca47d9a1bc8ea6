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

}  // namespace
}  // namespace bnn
