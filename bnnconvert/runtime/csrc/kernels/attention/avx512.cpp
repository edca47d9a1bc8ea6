#include "kernels/attention/body.h"

namespace bnn {
const AttentionFn kAttentionAvx512 = attend;
}  // namespace bnn
