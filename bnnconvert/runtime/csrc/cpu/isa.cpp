#include "cpu/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace bnn {

#if defined(__x86_64__)

namespace {

struct Registers {
    uint32_t a, b, c, d;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf = 0) {
    Registers r{};
    __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
    return r;
}

// Register files that the operating system saves; without them an instruction that the processor has still faults.
uint64_t saved_state() {
    uint32_t low = 0, high = 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return uint64_t{high} << 32 | low;
}

bool bit(uint32_t word, int number) { return word >> number & 1; }

}  // namespace

bool has(Isa isa) {
    const Registers one = cpuid(1), seven = cpuid(7);
    const bool saves = bit(one.c, 27);
    const uint64_t state = saves ? saved_state() : 0;
    const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6;
    const bool avx2 = ymm && bit(one.c, 12) /* FMA */ && bit(seven.b, 5) && bit(seven.b, 8) /* BMI2 */;
    switch (isa) {
        case Isa::portable: return true;
        case Isa::avx2: return avx2;
        case Isa::avx512:
            return avx2 && zmm && bit(seven.b, 16) /* F */ && bit(seven.b, 17) /* DQ */ && bit(seven.b, 30) /* BW */ &&
                   bit(seven.b, 31) /* VL */ && bit(seven.c, 11) /* VNNI */ && bit(seven.c, 14) /* VPOPCNTDQ */;
        default: return false;
    }
}

#elif defined(__aarch64__)

bool has(Isa isa) {
    switch (isa) {
        case Isa::portable:
        case Isa::neon: return true;  // part of the base architecture
        case Isa::neon_dot:
#if defined(__linux__)
            return getauxval(AT_HWCAP) & (1ul << 20);  // HWCAP_ASIMDDP
#else
            return true;  // every 64-bit Apple processor with macOS 11
#endif
        default: return false;
    }
}

#else

bool has(Isa isa) { return isa == Isa::portable; }

#endif

void wait_cycles(int64_t count) {
    int64_t value = 0;
    const int64_t other = count;
    // Not additions of a constant, which some processors do while they rename registers.
    for (int64_t i = 0; i < count; i += 8)
#if defined(__x86_64__)
        __asm__ volatile(".rept 8\n\txor %1, %0\n\t.endr" : "+r"(value) : "r"(other));
#elif defined(__aarch64__)
        __asm__ volatile(".rept 8\n\teor %0, %0, %1\n\t.endr" : "+r"(value) : "r"(other));
#else
        for (int k = 0; k < 8; k++) {
            value ^= other;
            __asm__ volatile("" : "+r"(value));
        }
#endif
}

const char* name_of(Isa isa) {
    switch (isa) {
        case Isa::portable: return "portable";
        case Isa::avx2: return "avx2";
        case Isa::avx512: return "avx512";
        case Isa::neon: return "neon";
        case Isa::neon_dot: return "neon_dot";
    }
    return "unknown";
}

}  // namespace bnn
