// Work on rows: reductions over the channels, and the change of order at the way in.
#pragma once

#include <cstdint>

namespace bnn {

// x[0..count) in place: e^x / sum e^x, or its logarithm.
using SoftmaxFn = void (*)(float* x, int count, bool logarithm);

// x[0..count) in place: (x - mean) / sqrt(variance + eps).
using NormalizeFn = void (*)(float* x, int count, float eps);

// to[pixel][channel] = from[channel][pixel], planes `plane` apart.
using InterleaveFn = void (*)(const float* from, int64_t plane, int channels, int pixels, float* to);

// The same in bytes, round(from * factor) + 128: elements of four channels, missing ones 128.
using InterleaveBytesFn = void (*)(const float* from, int64_t plane, int channels, int pixels, float factor,
                                   uint32_t* to);

struct RowKernels {
    SoftmaxFn softmax;
    NormalizeFn normalize;
    InterleaveFn interleave;
    InterleaveBytesFn interleave_bytes;
};

extern const RowKernels kRowsPortable;
#if defined(__x86_64__)
extern const RowKernels kRowsAvx2, kRowsAvx512;
#elif defined(__aarch64__)
extern const RowKernels kRowsNeon;
#endif

}  // namespace bnn
