// The window kernel, compiled once per instruction set.
#pragma once

#include "kernels/vector.h"
#include "kernels/window/window.h"

namespace bnn {
namespace {

template <class F>
BNN_INLINE void fold(const Tap* taps, int count, bool continues, float neutral, float* out, int blocks, F&& next) {
    for (int c = 0; c < 16 * blocks; c += 16) {
        Floats v = continues ? load(out + c) : all(neutral);
        for (int t = 0; t < count; t++) v = next(v, taps[t], c);
        store(out + c, v);
    }
}

void reduce_window(Reduce reduce, const Tap* taps, int count, bool continues, float* out, int blocks) {
    switch (reduce) {
        case Reduce::max:
            // A NaN wins, as in PyTorch.
            return fold(taps, count, continues, -__builtin_inff(), out, blocks, [](Floats v, const Tap& tap, int c) {
                const Floats x = load(tap.x + c);
                return (x > v) | (x != x) ? x : v;
            });
        case Reduce::sum:
            return fold(taps, count, continues, 0, out, blocks,
                        [](Floats v, const Tap& tap, int c) { return v + load(tap.x + c); });
        case Reduce::weighted:
            return fold(taps, count, continues, 0, out, blocks,
                        [](Floats v, const Tap& tap, int c) { return v + load(tap.x + c) * load(tap.w + c); });
    }
}

}  // namespace
}  // namespace bnn
