#include "kernels/window/body.h"

namespace bnn {
const WindowFn kWindowAvx2 = reduce_window;
}  // namespace bnn
