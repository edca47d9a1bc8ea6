#include "kernels/rows/body.h"

namespace bnn {
const RowKernels kRowsPortable = {softmax, interleave};
}  // namespace bnn
