#include "kernels/window/body.h"

namespace bnn {
const WindowFn kWindowNeon = reduce_window;
}  // namespace bnn
