#include "kernels/attention/body.h"

namespace bnn {
const AttentionFn kAttentionNeon = attend;
}  // namespace bnn
