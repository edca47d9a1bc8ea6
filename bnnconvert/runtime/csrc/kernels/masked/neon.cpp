#include "kernels/masked/body.h"

namespace bnn {
const MaskedFn kMaskedNeon = masked_block;
}  // namespace bnn
