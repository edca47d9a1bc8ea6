#include "kernels/chain/body.h"

namespace bnn {
const ChainKernel kChainAvx2 = kChain;
}  // namespace bnn
