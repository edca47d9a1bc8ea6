#include "kernels/chain/body.h"

namespace bnn {
const ChainKernel kChainAvx512 = {run_chain, combine};
}  // namespace bnn
