// A convolution or linear layer as a step: geometry, weights laid out for a tile, border constants.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/memory.h"
#include "kernels/table.h"
#include "threads/pool.h"

namespace bnn {

struct ConvShape {
    Dot dot;
    int channels, outputs, groups;       // channels are those of one input plane
    int input_planes, weight_planes;     // 1 unless binary
    int kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
    int top, left;                       // padding
    int input_height, input_width, height, width;
    bool pads_zero;                      // binary: a padded tap adds 0, although its bit says -1

    int group_channels() const { return channels / groups; }
    int group_outputs() const { return outputs / groups; }
    int taps() const { return kernel_h * kernel_w; }
    // Elements of 32 bits that one tap reads.
    int tap_elements() const {
        const int per_element = dot == Dot::binary ? 32 : dot == Dot::bytes ? 4 : 1;
        return (group_channels() + per_element - 1) / per_element;
    }
    int elements() const { return taps() * tap_elements(); }
};

// Weights in no machine's layout: [plane][output][tap][element].
struct ConvWeights {
    Array<uint32_t> elements;
};

// Integer thresholds of a binary layer whose bits go straight to the next one: start xor (threshold <= acc).
struct Thresholds {
    const int32_t* at;       // per output; INT32_MAX stands for none
    const uint8_t* start;    // per output
    Image image;             // where the bits go
};

class Conv {
  public:
    // `thresholds` may be null; then the chain says what becomes of the accumulators.
    Conv(const ConvShape& shape, ConvWeights weights, Image input, std::vector<ChainOp> chain, const float* scale,
         const Thresholds* thresholds, const Kernels& kernels);

    // Lay the weights out for one of the tiles that fit; the first to begin with.
    const std::vector<const ConvTile*>& tiles() const { return fitting_; }
    void use(const ConvTile& tile);
    const ConvTile& tile() const { return *tile_; }

    void run(int samples, Pool& pool) const;

    // Part of the work: pixels [begin, end) of all samples, groups of blocks [first, last).
    void run_part(int64_t begin, int64_t end, int first, int last) const;
    int block_groups() const { return block_groups_; }

    bool is_parallel = true;

  private:
    void make_runs();
    void make_constants();
    void threshold(int64_t begin, int64_t end, int group, int block_group) const;
    void accumulate(int64_t begin, int64_t end, int group, int block_group) const;
    void accumulate_rows(int64_t begin, int64_t end) const;

    ConvShape shape_;
    ConvWeights weights_;
    Image input_;
    std::vector<ChainOp> chain_;
    const float* scale_;
    bool has_thresholds_;
    Thresholds thresholds_{};
    const Kernels& kernels_;

    std::vector<const ConvTile*> fitting_;
    const ConvTile* tile_ = nullptr;
    Array<uint32_t> packed_;           // [input plane is shared][weight plane][group][block group][k][Q][16]
    int block_groups_ = 0;             // of one group
    std::vector<int32_t> runs_;
    int run_length_ = 0;
    bool gathers_ = false;             // windows are copied together first, as their runs are short
    std::vector<int32_t> row_class_, column_class_;
    int column_classes_ = 1;
    int padded_outputs_ = 0;           // of a row of the tables below
    Array<int32_t> base_, limits_;     // [weight plane][class][output]
};

}  // namespace bnn
