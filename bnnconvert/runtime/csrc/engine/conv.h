// A convolution or linear layer as a step: geometry, weights laid out for a tile, border constants.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "engine/chain.h"
#include "engine/conv_shape.h"
#include "engine/memory.h"
#include "kernels/table.h"
#include "threads/pool.h"

namespace bnn {

// Weights in no machine's layout: [plane][output][tap][element], or for signs rows of bits in words, taps together.
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
    Conv(const ConvShape& shape, ConvWeights weights, Image input, Chain chain, const float* scale,
         const float* bias, const Thresholds* thresholds, const Kernels& kernels, int threads);

    // Lay the weights out for one of the tiles that fit; the first to begin with.
    const std::vector<const ConvTile*>& tiles() const { return fitting_; }
    void use(const ConvTile& tile) { lay_out(tile, SIZE_MAX); }
    // The same for a look at a tile: of very many weights only the first filters, which `run_first` then runs alone.
    void look_at(const ConvTile& tile) { lay_out(tile, kLookBytes); }
    // The tile stays as it is from now on.
    void keep_tile() { weights_ = {}; }
    const ConvTile& tile() const { return *tile_; }

    void run(int samples, Pool& pool);
    // The first pixels alone, of the filters that are laid out, in the calling thread.
    void run_first(int64_t pixels) {
        makes_rows_ ? accumulate_rows(0, pixels, scratch_.data()) : run_part(0, pixels, 0, laid_out_, {});
    }
    // Filters, as a multiple of those that are laid out.
    double filters_per_look() const { return static_cast<double>(block_groups_) / laid_out_; }
    // Pixels [begin, end) of all samples; what the chain stores is moved by the shift.
    void run_pixels(int64_t begin, int64_t end, const Place& shift) const {
        run_part(begin, end, 0, block_groups_, shift);
    }

    bool is_parallel = true;

  private:
    struct Source;

    static constexpr size_t kLookBytes = size_t{32} << 20;  // more than a core's caches hold, as all the weights are

    void lay_out(const ConvTile& tile, size_t bytes);
    void make_runs();
    void make_byte_base();
    void make_classes();
    void make_base();
    void make_limits();
    int classes() const { return row_classes_ * column_classes_; }
    int read_length() const { return gathers_ ? shape_.elements() : run_length_; }  // of a run as tiles see it
    void pack_row(const uint32_t* row, uint32_t* to, int step) const;
    const uint32_t* weights_of(int plane, int group, int block_group) const;
    int class_of(const Place& place) const;
    template <class F>
    void for_tiles(const Source& source, int64_t begin, int64_t end, F&& use) const;

    // Pixels [begin, end) of all samples, groups of blocks [first, last).
    void run_part(int64_t begin, int64_t end, int first, int last, const Place& shift) const;
    void threshold(int64_t begin, int64_t end, int group, int block_group) const;
    void accumulate(int64_t begin, int64_t end, int group, int block_group, const Place& shift) const;
    void accumulate_rows(int64_t begin, int64_t end, uint32_t* scratch) const;
    void sum_up(int input_plane, int weight_plane, const int32_t* counts, const Tile& tile) const;

    ConvShape shape_;
    ConvWeights weights_;
    Image input_;
    Chain chain_;
    const float *scale_, *bias_;
    bool has_thresholds_;
    Thresholds thresholds_{};
    const Kernels& kernels_;

    std::vector<const ConvTile*> fitting_;
    const ConvTile* tile_ = nullptr;
    Array<uint32_t> packed_;        // [weight plane][group][block group][k][Q][16]
    int block_groups_ = 0;          // of one group
    int laid_out_ = 0;              // of those
    int packed_elements_ = 0;       // of a filter
    std::vector<int32_t> runs_;
    int run_length_ = 0;
    int plane_words_ = 0;           // from one input plane to the next
    bool gathers_ = false;          // windows are copied together first, as their runs are short
    bool extracts_ = false;         // and the group's bits are moved to the front of a word
    bool makes_rows_ = false;       // of all groups, as their outputs do not fill blocks
    std::vector<int32_t> row_class_, column_class_;
    std::vector<std::pair<int, int>> row_taps_, column_taps_;  // of each class, the first inside and the one behind
    int row_classes_ = 1, column_classes_ = 1;
    int padded_outputs_ = 0;        // of a row of the tables below
    Array<int32_t> base_, limits_;  // [weight plane][class][output]
    Array<uint32_t> scratch_;       // of all threads
    int threads_;
};

}  // namespace bnn
