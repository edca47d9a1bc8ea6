#include "kernels/chain/body.h"

namespace bnn {
const ChainKernel kChainAvx512 = kChain;
}  // namespace bnn
