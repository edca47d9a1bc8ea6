#include "kernels/chain/body.h"

namespace bnn {
const ChainKernel kChainNeon = {run_chain, combine};
}  // namespace bnn
