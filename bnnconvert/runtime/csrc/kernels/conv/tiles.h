// Every tile there is: one array per file, best guess first.
#pragma once

#include "kernels/conv/conv.h"

namespace bnn {

extern const ConvTile kConvPortable[3];
extern const SpinFn kSpinPortable;
#if defined(__x86_64__)
extern const ConvTile kConvAvx2[12];
extern const ConvTile kConvAvx512[19];
extern const SpinFn kSpinAvx2, kSpinAvx512;
#elif defined(__aarch64__)
extern const ConvTile kConvNeon[8];
extern const ConvTile kConvNeonDot[8];
extern const SpinFn kSpinNeon, kSpinNeonDot;
#endif

}  // namespace bnn
