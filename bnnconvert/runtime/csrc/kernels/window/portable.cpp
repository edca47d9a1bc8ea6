#include "kernels/window/body.h"

namespace bnn {
const WindowFn kWindowPortable = reduce_window;
}  // namespace bnn
