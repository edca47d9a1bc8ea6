#include "kernels/rows/body.h"

namespace bnn {
const SoftmaxFn kSoftmaxAvx2 = softmax;
}  // namespace bnn
