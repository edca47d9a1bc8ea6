#include "kernels/chain/body.h"

namespace bnn {
const ChainKernel kChainAvx2 = {run_chain, combine};
}  // namespace bnn
