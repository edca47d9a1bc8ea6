#include "kernels/rows/body.h"

namespace bnn {
const RowKernels kRowsAvx512 = {softmax, interleave};
}  // namespace bnn
