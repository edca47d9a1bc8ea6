#include "kernels/attention/body.h"

namespace bnn {
const AttentionFn kAttentionAvx2 = attend;
}  // namespace bnn
