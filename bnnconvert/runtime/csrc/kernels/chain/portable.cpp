#include "kernels/chain/body.h"

namespace bnn {
const ChainKernel kChainPortable = {run_chain, combine};
}  // namespace bnn
