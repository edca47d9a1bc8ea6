// Pools and depthwise convolutions: what a window of pixels comes to, channel by channel.
#pragma once

#include <cstdint>

namespace bnn {

enum class Reduce : uint8_t { max, sum, weighted };

struct Tap {
    const float* x;
    const float* w;  // weighted only
};

// out[block][16] = the reduction of x, or of x * w, over the taps; and of what is in `out` already if `continues`.
using WindowFn = void (*)(Reduce reduce, const Tap* taps, int count, bool continues, float* out, int blocks);

extern const WindowFn kWindowPortable;
#if defined(__x86_64__)
extern const WindowFn kWindowAvx2, kWindowAvx512;
#elif defined(__aarch64__)
extern const WindowFn kWindowNeon;
#endif

}  // namespace bnn
