#include "kernels/table.h"

#include "kernels/conv/tiles.h"

namespace bnn {
namespace {

template <int N>
constexpr Span<ConvTile> span(const ConvTile (&tiles)[N]) {
    return {tiles, N};
}

}  // namespace

Span<Kernels> all_kernels() {
    static const Kernels rows[] = {
        {Isa::portable, span(kConvPortable), kSpinPortable, kChainPortable, kWindowPortable, kMaskedPortable,
         kAttentionPortable, kRowsPortable},
#if defined(__x86_64__)
        {Isa::avx2, span(kConvAvx2), kSpinAvx2, kChainAvx2, kWindowAvx2, kMaskedAvx2, kAttentionAvx2,
         kRowsAvx2},
        {Isa::avx512, span(kConvAvx512), kSpinAvx512, kChainAvx512, kWindowAvx512, kMaskedAvx512, kAttentionAvx512,
         kRowsAvx512},
#elif defined(__aarch64__)
        {Isa::neon, span(kConvNeon), kSpinNeon, kChainNeon, kWindowNeon, kMaskedNeon, kAttentionNeon,
         kRowsNeon},
        {Isa::neon_dot, span(kConvNeonDot), kSpinNeonDot, kChainNeon, kWindowNeon, kMaskedNeon, kAttentionNeon,
         kRowsNeon},
#endif
    };
    return {rows, sizeof rows / sizeof *rows};
}

const Kernels& kernels_of(Isa isa) {
    const Span<Kernels> rows = all_kernels();
    for (const Kernels& row : rows)
        if (row.isa == isa) return row;
    return rows.data[0];
}

}  // namespace bnn
