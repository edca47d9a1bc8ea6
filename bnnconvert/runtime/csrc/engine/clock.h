// Seconds, for tuning and profiles.
#pragma once

#include <chrono>

namespace bnn {

inline double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace bnn
