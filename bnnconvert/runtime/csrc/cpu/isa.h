// Instruction sets that kernels are written for, and which of them this machine has.
#pragma once

#include <cstdint>

namespace bnn {

// In rising order of preference on one architecture. `portable` is the oracle.
enum class Isa : uint8_t { portable, avx2, avx512, neon, neon_dot };

const char* name_of(Isa isa);

// Whether the processor and the operating system can run it.
bool has(Isa isa);

// Does `count` operations, each of which waits for the one before: a cycle each on any processor.
void wait_cycles(int64_t count);

}  // namespace bnn
