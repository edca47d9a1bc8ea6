#include "kernels/rows/body.h"

namespace bnn {
const RowKernels kRowsAvx512 = kRows;
}  // namespace bnn
