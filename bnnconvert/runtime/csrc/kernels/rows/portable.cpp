#include "kernels/rows/body.h"

namespace bnn {
const SoftmaxFn kSoftmaxPortable = softmax;
}  // namespace bnn
