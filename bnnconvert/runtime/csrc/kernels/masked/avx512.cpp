#include "kernels/masked/body.h"

namespace bnn {
const MaskedFn kMaskedAvx512 = masked_block;
}  // namespace bnn
