#include "kernels/window/body.h"

namespace bnn {
const WindowFn kWindowAvx512 = reduce_window;
}  // namespace bnn
