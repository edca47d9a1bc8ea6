// The masked kernel, compiled once per instruction set.
#pragma once

#include "kernels/masked/masked.h"
#include "kernels/vector.h"

namespace bnn {
namespace {

BNN_INLINE Floats load_first(const float* from, int lanes) {
    Floats v{};
    std::memcpy(&v, from, sizeof *from * static_cast<size_t>(lanes));
    return v;
}

BNN_INLINE float total(const Floats& v) {
    typedef float Half __attribute__((vector_size(32)));
    typedef float Quarter __attribute__((vector_size(16)));
    Half halves[2];
    Quarter quarters[2];
    __builtin_memcpy(halves, &v, sizeof v);
    const Half half = halves[0] + halves[1];
    __builtin_memcpy(quarters, &half, sizeof half);
    const Quarter quarter = quarters[0] + quarters[1];
    return (quarter[0] + quarter[1]) + (quarter[2] + quarter[3]);
}

// Several outputs at once, so that x is loaded once for them and their sums do not wait for each other.
template <int kRows>
void products(MaskedWindow window, const float* weights, const float* bias, const int* lanes, float* out) {
    const int64_t row = masked_row(window.run_count, window.run_length);
    const int whole = window.run_length / kLanes * kLanes, rest = window.run_length - whole;
    const float* w[kRows];
    Floats sums[kRows];
    for (int r = 0; r < kRows; r++) w[r] = weights + lanes[r] * row, sums[r] = Floats{};
    int64_t k = 0;
    for (int run = 0; run < window.run_count; run++) {
        const float* x = window.pixel + window.runs[run];
        for (int i = 0; i < whole; i += kLanes, k += kLanes) {
            const Floats v = load(x + i);
            for (int r = 0; r < kRows; r++) sums[r] += v * load(w[r] + k);
        }
        if (rest) {
            const Floats v = load_first(x + whole, rest);  // what lies behind may be no number at all
            for (int r = 0; r < kRows; r++) sums[r] += v * load(w[r] + k);
            k += kLanes;
        }
    }
    for (int r = 0; r < kRows; r++) out[lanes[r]] = bias[lanes[r]] + total(sums[r]);
}

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kAtOnce = 8;
#else
constexpr int kAtOnce = 4;  // sixteen lanes are two registers
#endif

void masked_block(const MaskedWindow& window, const float* weights, const float* bias, uint16_t mask, float* out) {
    store(out, Floats{});
    int lanes[kLanes], count = 0, done = 0;
    for (unsigned left = mask; left; left &= left - 1) lanes[count++] = __builtin_ctz(left);
    for (; done + kAtOnce <= count; done += kAtOnce) products<kAtOnce>(window, weights, bias, lanes + done, out);
    for (; done + 2 <= count; done += 2) products<2>(window, weights, bias, lanes + done, out);
    if (done < count) products<1>(window, weights, bias, lanes + done, out);
}

}  // namespace
}  // namespace bnn
