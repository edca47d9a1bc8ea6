#include "kernels/rows/body.h"

namespace bnn {
const SoftmaxFn kSoftmaxAvx512 = softmax;
}  // namespace bnn
