#include "kernels/rows/body.h"

namespace bnn {
const RowKernels kRowsNeon = kRows;
}  // namespace bnn
