#include "kernels/conv/neon_tiles.h"

namespace bnn {
const ConvTile kConvNeon[] = {BNN_NEON_TILES};
const SpinFn kSpinNeon = spin<Binary, 4>;
}  // namespace bnn
