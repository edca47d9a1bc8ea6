#include "kernels/rows/body.h"

namespace bnn {
const RowKernels kRowsNeon = {softmax, interleave};
}  // namespace bnn
