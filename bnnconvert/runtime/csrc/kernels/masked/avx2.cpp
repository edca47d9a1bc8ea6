#include "kernels/masked/body.h"

namespace bnn {
const MaskedFn kMaskedAvx2 = masked_block;
}  // namespace bnn
