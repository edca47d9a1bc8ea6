// Reductions over a row of channels.
#pragma once

namespace bnn {

// x[0..count) in place: e^x / sum e^x, or its logarithm.
using SoftmaxFn = void (*)(float* x, int count, bool logarithm);

extern const SoftmaxFn kSoftmaxPortable;
#if defined(__x86_64__)
extern const SoftmaxFn kSoftmaxAvx2, kSoftmaxAvx512;
#elif defined(__aarch64__)
extern const SoftmaxFn kSoftmaxNeon;
#endif

}  // namespace bnn
