#include "kernels/rows/body.h"

namespace bnn {
const RowKernels kRowsAvx2 = {softmax, interleave};
}  // namespace bnn
