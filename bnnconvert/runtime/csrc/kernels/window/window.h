// Pools and depthwise convolutions: what a window of pixels comes to, channel by channel.
#pragma once

#include <cstdint>

namespace bnn {

enum class Reduce : uint8_t { max, sum, weighted };

// A pixel of a window and its weights, as offsets from where the window and the weights begin.
struct Tap {
    int64_t x, w;
};

struct WindowInput {
    const float* x;
    const float* w;  // weighted only
    const Tap* taps;
    int count;
};

// out[block][16] = the reduction of x, or of x * w, over the taps; and of what is in `out` already if `continues`.
using WindowFn = void (*)(Reduce reduce, const WindowInput& input, bool continues, float* out, int blocks);

extern const WindowFn kWindowPortable;
#if defined(__x86_64__)
extern const WindowFn kWindowAvx2, kWindowAvx512;
#elif defined(__aarch64__)
extern const WindowFn kWindowNeon;
#endif

}  // namespace bnn
