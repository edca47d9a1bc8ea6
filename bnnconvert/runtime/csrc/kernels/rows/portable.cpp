#include "kernels/rows/body.h"

namespace bnn {
const RowKernels kRowsPortable = kRows;
}  // namespace bnn
