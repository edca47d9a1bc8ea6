// What goes wrong in the engine is said in one sentence; the C interface turns it into a status.
#pragma once

#include <stdexcept>
#include <string>

namespace bnn {

struct PlanError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

}  // namespace bnn
