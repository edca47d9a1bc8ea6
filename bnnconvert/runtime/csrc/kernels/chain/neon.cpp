#include "kernels/chain/body.h"

namespace bnn {
const ChainKernel kChainNeon = kChain;
}  // namespace bnn
