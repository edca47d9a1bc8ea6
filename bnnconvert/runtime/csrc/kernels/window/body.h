// The window kernel, compiled once per instruction set.
#pragma once

#include "kernels/vector.h"
#include "kernels/window/window.h"

namespace bnn {
namespace {

// Windows of the usual sizes: the number of taps is known, so the loop over them is unrolled.
template <int kTaps, class F>
BNN_INLINE void fold_all(WindowInput input, float neutral, float* out, int blocks, F next) {
    const float *x[kTaps], *w[kTaps];
    for (int t = 0; t < kTaps; t++) x[t] = input.x + input.taps[t].x, w[t] = input.w + input.taps[t].w;
    for (int c = 0; c < 16 * blocks; c += 16) {
        Floats v = all(neutral);
        for (int t = 0; t < kTaps; t++) v = next(v, x[t] + c, w[t] + c);
        store(out + c, v);
    }
}

template <class F>
BNN_INLINE void fold(WindowInput input, bool continues, float neutral, float* out, int blocks, F next) {
    if (!continues && input.count == 9) return fold_all<9>(input, neutral, out, blocks, next);
    if (!continues && input.count == 4) return fold_all<4>(input, neutral, out, blocks, next);
    for (int c = 0; c < 16 * blocks; c += 16) {
        Floats v = continues ? load(out + c) : all(neutral);
        for (int t = 0; t < input.count; t++) v = next(v, input.x + input.taps[t].x + c, input.w + input.taps[t].w + c);
        store(out + c, v);
    }
}

void reduce_window(Reduce reduce, const WindowInput& input, bool continues, float* out, int blocks) {
    switch (reduce) {
        case Reduce::max:
            // A NaN wins, as in PyTorch.
            return fold(input, continues, -__builtin_inff(), out, blocks, [](Floats v, const float* at, const float*) {
                const Floats x = load(at);
                return (x > v) | (x != x) ? x : v;
            });
        case Reduce::sum:
            return fold(input, continues, 0, out, blocks,
                        [](Floats v, const float* x, const float*) { return v + load(x); });
        case Reduce::weighted:
            return fold(input, continues, 0, out, blocks,
                        [](Floats v, const float* x, const float* w) { return v + load(x) * load(w); });
    }
}

}  // namespace
}  // namespace bnn
