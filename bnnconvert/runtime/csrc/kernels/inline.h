// Functions in headers that files with different instruction sets include must not be shared by the linker.
#pragma once

#define BNN_INLINE inline __attribute__((always_inline))
