#include "kernels/rows/body.h"

namespace bnn {
const RowKernels kRowsAvx2 = kRows;
}  // namespace bnn
