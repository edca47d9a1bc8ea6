#include "kernels/attention/body.h"

namespace bnn {
const AttentionFn kAttentionPortable = attend;
}  // namespace bnn
