#include "kernels/conv/neon_tiles.h"

namespace bnn {
const ConvTile kConvNeonDot[] = {BNN_NEON_TILES};
const SpinFn kSpinNeonDot = spin<Binary, 4>;
}  // namespace bnn
