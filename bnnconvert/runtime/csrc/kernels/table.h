// The kernels of each instruction set: one row each, for selection, tests and benchmarks.
#pragma once

#include "cpu/isa.h"
#include "kernels/attention/attention.h"
#include "kernels/chain/chain.h"
#include "kernels/conv/conv.h"
#include "kernels/masked/masked.h"
#include "kernels/rows/rows.h"
#include "kernels/window/window.h"

namespace bnn {

template <class T>
struct Span {
    const T* data;
    int size;
    const T* begin() const { return data; }
    const T* end() const { return data + size; }
};

struct Kernels {
    Isa isa;
    Span<ConvTile> conv;
    SpinFn spin;
    ChainKernel chain;
    WindowFn window;
    MaskedFn masked;
    AttentionFn attention;
    RowKernels rows;
};

// Of every instruction set that this library was built for, whether the machine has it or not, in rising order.
Span<Kernels> all_kernels();

// Of one that the machine has.
const Kernels& kernels_of(Isa isa);

}  // namespace bnn
