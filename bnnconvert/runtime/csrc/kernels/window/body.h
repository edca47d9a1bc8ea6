// The window kernel, compiled once per instruction set.
#pragma once

#include "kernels/vector.h"
#include "kernels/window/window.h"

namespace bnn {
namespace {

template <class F>
BNN_INLINE void fold(WindowInput input, bool continues, float neutral, float* out, int blocks, F next) {
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
