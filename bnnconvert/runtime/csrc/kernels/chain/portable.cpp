#include "kernels/chain/body.h"

namespace bnn {
const ChainKernel kChainPortable = kChain;
}  // namespace bnn
