#include "kernels/rows/body.h"

namespace bnn {
const SoftmaxFn kSoftmaxNeon = softmax;
}  // namespace bnn
