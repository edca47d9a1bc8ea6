#include "kernels/masked/body.h"

namespace bnn {
const MaskedFn kMaskedPortable = masked_block;
}  // namespace bnn
