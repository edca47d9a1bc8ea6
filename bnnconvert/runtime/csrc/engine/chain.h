// A step's chain, made ready to run: in one pass where its form is a common one, else operation by operation.
#pragma once

#include <vector>

#include "engine/memory.h"
#include "kernels/table.h"

namespace bnn {

struct Build;
struct StepSpec;

class Chain {
  public:
    // On numbers in a tile, or of an image where `source` is one.
    Chain(const StepSpec& step, const Build& build, const Image* source = nullptr);

    // On a layer's counts, whose scale and bias belong to the step.
    static Chain on_counts(const StepSpec& step, const Build& build, bool are_mismatches);

    void run(const Tile& tile) const;
    // Shapes: counts as the tile is, base per pixel, then per channel.
    void run(const int32_t* counts, const int32_t* const* base, const Tile& tile) const;

  private:
    Chain(const StepSpec& step, const Build& build, Source source, const Image* image, const float* scale,
          const float* bias);

    bool fuse(Source source);

    std::vector<ChainOp> ops_;
    const ChainKernel& kernel_;
    const float *scale_, *bias_;  // of counts
    bool are_mismatches_;
    Array<float> ones_, zeros_;
    Fused parts_{};
    FusedFn fused_ = nullptr;
};

}  // namespace bnn
